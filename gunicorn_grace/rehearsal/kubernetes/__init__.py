"""What Kubernetes does to a pod: routing, probes, deletion, roll-out, and how a manifest sets them up."""

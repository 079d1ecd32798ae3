"""The Kubernetes of a rehearsal: routing, probes, deletion, roll-out, and the manifest behind
them."""

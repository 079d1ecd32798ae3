"""The parts of Kubernetes that a rehearsal imitates: routing, probes, deletion, roll-out, and the
manifest that describes them."""

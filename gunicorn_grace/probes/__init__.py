"""The answers to the probes, in a worker or in the probe responder: who asks, and what is said."""

"""What runs in the arbiter."""

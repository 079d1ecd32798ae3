"""The process behind the probe port."""

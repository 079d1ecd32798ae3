"""The part of the plugin that runs in the arbiter."""

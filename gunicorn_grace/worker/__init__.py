"""The part of the plugin that runs in worker processes."""

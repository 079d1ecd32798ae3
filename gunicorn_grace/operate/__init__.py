"""The commands: what runs when somebody types gunicorn-grace."""

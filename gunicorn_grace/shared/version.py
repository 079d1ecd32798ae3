"""The version of gunicorn-grace. It has a module of its own because reports contain it too."""

__version__ = "0.1.0"

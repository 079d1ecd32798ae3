"""The version of gunicorn-grace: in a module of its own, because reports tell it as well."""

__version__ = "0.1.0"

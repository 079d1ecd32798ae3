"""The folder that ``gunicorn-grace run`` puts in front of Python's path."""

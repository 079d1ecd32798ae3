"""The command ``gunicorn-grace rehearse`` and its options, and the pytest fixture ``rehearse``."""

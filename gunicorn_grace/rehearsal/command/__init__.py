"""The command ``gunicorn-grace rehearse``, its options, and the fixture that plays the same in pytest."""

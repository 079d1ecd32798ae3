"""``gunicorn-grace manifest``: prints a fragment of a platform's configuration that fits the
settings.

``places`` lists the platforms, and ``sums`` adds up the seconds. ``plan`` gathers the content of
the fragment, and ``kubernetes`` and ``elsewhere`` print it. The user's code is not run, and nothing
is changed anywhere.
"""

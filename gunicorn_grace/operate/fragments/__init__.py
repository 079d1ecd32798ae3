"""``gunicorn-grace manifest``: the fragment of a platform's configuration that fits the settings.

``places`` knows the platforms, and ``sums`` adds the seconds up. ``plan`` gathers what is to be
printed, and ``kubernetes`` and ``elsewhere`` print it. Nothing of a user's is run, and nothing is
changed anywhere.
"""

"""How many examples Hypothesis tries."""

from __future__ import annotations

import os

import hypothesis

THOROUGH = "TOX_ENV_NAME" in os.environ
"""Whether tox runs this: the README's command has a minute for all unit tests."""


def trials(many: int = 100) -> hypothesis.settings:
    """So many examples under tox, an eighth of them elsewhere. A busy machine makes any of them
    take long."""
    return hypothesis.settings(max_examples=many if THOROUGH else many // 8, deadline=None)

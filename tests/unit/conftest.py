"""Hypothesis, where a test does not say how often it tries."""

from __future__ import annotations

import hypothesis

from support.trials import trials

hypothesis.settings.register_profile("grace", trials())
hypothesis.settings.load_profile("grace")

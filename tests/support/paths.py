"""Where things are in a checkout."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
APPS = TESTS / "apps"
"""The applications that servers load: on ``PYTHONPATH`` of every server under test."""
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"

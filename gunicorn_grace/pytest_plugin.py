"""Fixtures for the tests of an application, which pytest finds by itself where this package is
installed.

Apart from :mod:`gunicorn_grace.testing`, because every run of pytest in that environment imports
this module: it does nothing else, and imports nothing more until a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import Instance


@pytest.fixture
def grace_instance() -> Iterator[Instance]:
    """The test's process pretends to be the worker of an instance that serves: lead it through its
    phases.

    ``grace_instance.enter(Phase.LAME_DUCK, seconds_left=8)``; see
    :class:`gunicorn_grace.testing.Instance`.
    """
    from .shared.phase import Phase
    from .testing import in_phase

    with in_phase(Phase.SERVING) as instance:
        yield instance

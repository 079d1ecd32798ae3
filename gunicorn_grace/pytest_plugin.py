"""Fixtures for the tests of an application. pytest finds them by itself if this package is
installed.

Every run of pytest in the environment imports this module. So it is separate from
:mod:`gunicorn_grace.testing`, and imports the rest of the package only when a test uses a fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import Instance


@pytest.fixture
def grace_instance() -> Iterator[Instance]:
    """Let the test process pretend to be the worker of an instance that serves.

    The test moves it through the phases: ``grace_instance.enter(Phase.LAME_DUCK, seconds_left=8)``.
    See :class:`gunicorn_grace.testing.Instance`.
    """
    from .shared.phase import Phase
    from .testing import in_phase

    with in_phase(Phase.SERVING) as instance:
        yield instance

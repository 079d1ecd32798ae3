"""The other arbiter after SIGUSR2: how its memory is found."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from gunicorn_grace.arbiter.upgrade import Counterpart
from gunicorn_grace.shared import memory as shm
from gunicorn_grace.shared.memory import Memory

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd here")


def test_a_damaged_memory_beside_the_right_one_hides_nothing(memory: Memory) -> None:
    """The other arbiter has a descriptor of that name which is none of ours, before its own. It is
    passed over: the other one was told to stop, so it does not serve on."""
    decoy = os.memfd_create(shm.LINK.removeprefix("/memfd:").split(" ")[0])
    os.truncate(decoy, 10)
    theirs = Memory.create(slots=1)
    theirs.header.arbiter = os.getpid()
    assert decoy < theirs.fd
    try:
        counterpart = Counterpart(SimpleNamespace(reexec_pid=os.getpid(), master_pid=0), memory)
        assert counterpart.serves()
        theirs.header.told = 1
        assert not counterpart.serves()
        assert counterpart._memory is not None
        counterpart._memory.close()
    finally:
        os.close(decoy)
        theirs.close()

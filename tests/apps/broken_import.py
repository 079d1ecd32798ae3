"""An application that cannot be loaded any more once a flag file exists; what stands in the file
says why not."""

from __future__ import annotations

import os
from pathlib import Path

flag = Path(os.environ["BROKEN_FLAG"])
if not flag.exists():
    from service import app  # noqa: F401
elif flag.read_text() == "raises":
    raise RuntimeError("broken on purpose")

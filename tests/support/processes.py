"""Python processes that import what this one does."""

from __future__ import annotations

import os
import sys


def child_environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, **changes}

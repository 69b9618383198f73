"""How the calls of fenced runs are answered here: by the compiled fast path, or by Python alone."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The environment variable that chooses: `compiled` (the default where it is there), `python`, or `mixed`, which sends
#: every second call to Python at random, for tests.
CHOICE = "AIPASS_FENCE"
HAS_COMPILED = (
    sys.platform == "linux" and importlib.util.find_spec("aipass.supervisor.fence._fast") is not None
)


def mode(environ: Mapping[str, str] = os.environ) -> str:
    """`compiled`, `mixed` or `python`."""
    chosen = environ.get(CHOICE, "")
    if not HAS_COMPILED or chosen == "python":
        return "python"
    return "mixed" if chosen == "mixed" else "compiled"


def why_not(environ: Mapping[str, str] = os.environ) -> str:
    """Why the compiled part is not used; empty where it is."""
    if sys.platform != "linux":
        return "it needs Linux"
    if not HAS_COMPILED:
        return "installed without a C compiler"
    return f"{CHOICE}=python" if environ.get(CHOICE) == "python" else ""


def described(environ: Mapping[str, str] = os.environ) -> str:
    """In words: `compiled`, or `Python` with the reason."""
    why = why_not(environ)
    return f"Python: {why}" if why else mode(environ)


if __name__ == "__main__":
    # For the Makefile, after an installation.
    print(f"the fence's fast path: {described()}")

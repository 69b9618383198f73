"""How often something is tried: a few times in `make test`, many in `make nightly`."""

from __future__ import annotations

import os

#: `make nightly` repeats what `make test` does a few times: the properties are the same, the rounds are more.
NIGHTLY = os.environ.get("AIPASS_NIGHTLY") == "1"


def rounds(usual: int, nightly: int) -> int:
    """How often, or with how many, something is tried."""
    return nightly if NIGHTLY else usual


def few(cases, usual: int):
    """So many of the cases of one kind, evenly spread, with the first and the last; `make nightly` tries each."""
    cases = list(cases)
    assert 2 <= usual < len(cases), f"there are {len(cases)}"
    if NIGHTLY:
        return cases
    return [cases[round(place * (len(cases) - 1) / (usual - 1))] for place in range(usual)]

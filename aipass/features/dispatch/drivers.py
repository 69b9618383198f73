"""The installed drivers and the starter of processes, as one value that `Core.need` gives to the dispatch feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aipass.features.dispatch.driver import Driver
    from aipass.features.dispatch.launcher import Runner


@dataclass(frozen=True, slots=True)
class Drivers:
    """`by_name`: the adapter of each kind of CLI; `runner`: the supervisors, or a script in tests."""

    by_name: Mapping[str, Driver]
    runner: Runner

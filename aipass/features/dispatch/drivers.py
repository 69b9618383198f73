"""The drivers that are installed, and who starts the processes: what the machine around offers to dispatches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aipass.features.dispatch.driver import Driver
    from aipass.features.dispatch.launcher import Runner


@dataclass(frozen=True, slots=True)
class Drivers:
    """`by_name`: how each kind of CLI is run; `runner`: the supervisors, or a script in tests."""

    by_name: Mapping[str, Driver]
    runner: Runner

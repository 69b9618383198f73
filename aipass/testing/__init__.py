"""Our own test kit, shipped for authors of plugins: an engine with a virtual clock and scripted runs."""

from __future__ import annotations

from aipass.testing.bench import Bench
from aipass.testing.clock import VirtualClock
from aipass.testing.runner import ScriptedRunner

__all__ = ["Bench", "ScriptedRunner", "VirtualClock"]

"""What we test with, shipped for authors of plugins: a repository, an engine under a virtual clock, scripted runs."""

from __future__ import annotations

from aipass.testing.bench import Bench
from aipass.testing.clock import VirtualClock
from aipass.testing.runner import ScriptedRunner

__all__ = ["Bench", "ScriptedRunner", "VirtualClock"]

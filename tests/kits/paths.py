"""Where the project and the programs of the tests are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
KITS = TESTS / "kits"

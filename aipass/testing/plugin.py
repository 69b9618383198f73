"""The pytest plugin of aipass: fixtures for tests of handlers, drivers and aipass itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aipass.testing.bench import Bench

#: One agent whose program, `cat`, every machine has.
TOML = '[agents.writer]\ndriver = "command"\ncommand = ["cat"]\n'


@pytest.fixture
def aipass_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Return a function that makes a `Bench` in an own root: `aipass_bench(toml, *plugins)`. All are closed after the test."""
    # Imported late, so that test suites which never use this fixture do not pay for the engine.
    from aipass.testing.bench import Bench

    made: list[Bench] = []

    def make(toml: str = TOML, *plugins: object, **options: object) -> Bench:
        root = tmp_path / f"root-{len(made)}"
        root.mkdir()
        made.append(Bench(root, toml, *plugins, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for bench in made:
        bench.close()

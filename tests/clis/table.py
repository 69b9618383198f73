"""Make docs/clis-tested.md of what `make test-clis` wrote down: `table.py FOLDER PAGE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

PACKAGES = {
    "claude": "@anthropic-ai/claude-code",
    "codex": "@openai/codex",
    "gemini": "@google/gemini-cli",
    "opencode": "opencode-ai",
}
HEAD = """# What was tried with the real CLIs

`make test-clis` makes this page: each case is a real binary behind the real fence, in a network namespace with only
loopback, with a home of its own that must be as it was at the end, against a scripted model.

"""


def main(folder: Path, page: Path) -> None:
    """Write the page, if every CLI was tried."""
    rows: dict[str, dict[str, str]] = {}
    for line in (folder / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["case"], {})[row["cli"]] = row["came"]
    small = rows.pop("llm with SmolLM2 on the CPU", {})
    tried = {name for came in rows.values() for name in came}
    if tried != PACKAGES.keys():
        print(f"{page} stays as it is: only {', '.join(sorted(tried))} could be tried")
        return
    heads = [f"{name} {_version(folder, package)}" for name, package in PACKAGES.items()]
    lines = [f"| case | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for case, came in sorted(rows.items()):
        lines.append(f"| {case} | {' | '.join(came.get(name, '-') for name in PACKAGES)} |")
    if small:
        lines.append(
            f'\nThe `llm` driver, with the model SmolLM2 on the processor and no network, said: "{small["llm"]}"'
        )
    page.write_text(HEAD + "\n".join(lines) + "\n")


def _version(folder: Path, package: str) -> str:
    found = json.loads((folder / "node_modules" / package / "package.json").read_text())
    return str(found["version"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

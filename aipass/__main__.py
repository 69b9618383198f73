"""The command `aipass`, as a script or as `python -m aipass`: isolates this process, then runs the verb."""

from __future__ import annotations

from aipass import isolation


def main() -> None:
    """Run one verb and exit with its code."""
    # Under whatever name it was started.
    isolation.leave_out_the_tree()
    from aipass.cli.main import main as run_verb

    run_verb()


if __name__ == "__main__":
    main()

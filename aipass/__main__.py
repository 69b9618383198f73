"""The entry point of the command `aipass`, as a script or as `python -m aipass`."""

from __future__ import annotations

from aipass import isolation


def main() -> None:
    """Isolate this process from modules in the repository, run one verb, and exit with its code."""
    # Importing `aipass` did this only if the program is named `aipass`. A link or a wrapper may have another name.
    isolation.leave_out_the_tree()
    # Imported here, after `sys.path` is clean.
    from aipass.cli.main import main as run_verb

    run_verb()


if __name__ == "__main__":
    main()

"""The isolation of this process: removes folders from `sys.path` in which agents can write.

Such folders come from the current folder, PYTHONPATH, or a project that is installed in editable form. This module is
imported before everything else of aipass.
"""

from __future__ import annotations

import os
import sys

# Many modules of the standard library try to import one that does not exist on this system (`msvcrt`, `org.python`). A
# file of that name which an agent wrote would be found on `sys.path`, and run outside the sandbox.

#: Equal to the name in `aipass.workspace.layout`, which is not imported: nothing may be, before `sys.path` is clean.
CONFIG_NAME = "aipass.toml"
#: The folders that were removed from `sys.path`. Another Python of this environment still imports from them while it
#: starts, before any line of ours can remove them. `features/ownership/guarded.py` therefore protects these folders.
left_out: list[str] = []


def is_program() -> bool:
    """Whether this process runs a verb of aipass; False for a program that uses aipass as a library."""
    how, what = _started()
    return (
        what in ("aipass", "aipass.__main__")
        if how == "m"
        else how == "" and os.path.basename(what) == "aipass"
    )


def _started() -> tuple[str, str]:
    """How this Python was started: `m` and a module, `c` and a text, "" and a script, or `-` and "" for standard input."""
    # `sys.argv` does not have the options of Python itself, and `sys.argv[0]` is only "-m" while the package is imported.
    words = iter(sys.orig_argv[1:])
    for word in words:
        if word == "-":
            break
        if not word.startswith("-"):
            return "", word
        # Short options can be combined. The first one with a value ends them, and its value can follow without a space.
        place = next((at for at, letter in enumerate(word) if letter in "mcWX"), None)
        if word.startswith("--") or place is None:
            continue
        value = word[place + 1 :] or next(words, "")
        if word[place] in "mc":
            return word[place], value
    return "-", ""


def leave_out_the_tree() -> None:
    """Remove folders from `sys.path` in which agents can write. Folders of this Python and of this aipass stay. Idempotent."""
    named = os.environ.get("PYTHONPATH", "") if not sys.flags.ignore_environment else ""
    out = {os.path.abspath(entry) for entry in named.split(":") if entry}
    if not sys.flags.safe_path and _started()[0] == "m":
        # `python -m` puts the current folder first.
        try:
            out.add(os.getcwd())
        except FileNotFoundError:
            pass  # the current folder was removed, so that nothing can be imported from it either
    kept = [
        entry
        for entry in sys.path
        if entry and (is_ours(entry) or (os.path.abspath(entry) not in out and not is_below_a_root(entry)))
    ]
    # In place: the import system and other modules hold a reference to this list.
    left_out.extend(os.path.abspath(entry) for entry in sys.path if entry not in kept)
    sys.path[:] = kept


def is_ours(place: str) -> bool:
    """Whether a folder belongs to this Python or its virtual environment, or contains this aipass."""
    real = os.path.realpath(place)
    libraries = {
        os.path.join(os.path.realpath(prefix), name)
        for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)
        for name in ("lib", "lib64", sys.platlibdir)
    }
    here = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    return real == here or any(real == one or real.startswith(one + "/") for one in libraries)


def is_below_a_root(place: str) -> bool:
    """Whether a path is a folder with an `aipass.toml` or is below one, so that agents can write there."""
    above, before = os.path.realpath(place), ""
    while above != before:
        if os.path.isfile(os.path.join(above, CONFIG_NAME)):
            return True
        above, before = os.path.dirname(above), above
    return False

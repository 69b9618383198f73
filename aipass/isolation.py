"""The module path of a process of ours: without what the current folder, PYTHONPATH, or a project that is installed in editable form put there.

Imported before anything else of aipass. Many modules of the standard library try to import what is not there on this system (`msvcrt`,
`org.python`), and would find it where an agent writes.
"""

from __future__ import annotations

import os
import sys

#: As `aipass.workspace.layout` has it: nothing of ours is imported here.
CONFIG_NAME = "aipass.toml"
#: What was taken from `sys.path`: a Python of the same environment finds modules there before any line of ours can leave it out.
left_out: list[str] = []


def is_program() -> bool:
    """Whether this process was started to run a verb of aipass, and is not a program that uses aipass as a library."""
    how, what = _started()
    return (
        what in ("aipass", "aipass.__main__")
        if how == "m"
        else how == "" and os.path.basename(what) == "aipass"
    )


def _started() -> tuple[str, str]:
    """What this Python was started with: `m` and a module, `c` and a text, or "" and a script; `-` and nothing for its input."""
    words = iter(sys.orig_argv[1:])
    for word in words:
        if word == "-":
            break
        if not word.startswith("-"):
            return "", word
        # Short options may stand together; the first with a value ends them, and it may be joined to it.
        place = next((at for at, letter in enumerate(word) if letter in "mcWX"), None)
        if word.startswith("--") or place is None:
            continue
        value = word[place + 1 :] or next(words, "")
        if word[place] in "mc":
            return word[place], value
    return "-", ""


def leave_out_the_tree() -> None:
    """Take from `sys.path` whatever may lie where agents write, but for what this aipass and its Python themselves run from."""
    named = os.environ.get("PYTHONPATH", "") if not sys.flags.ignore_environment else ""
    out = {os.path.abspath(entry) for entry in named.split(":") if entry}
    if not sys.flags.safe_path and _started()[0] == "m":
        # `python -m` puts the current folder first.
        try:
            out.add(os.getcwd())
        except FileNotFoundError:
            pass  # then nothing is imported from there either
    kept = [
        entry
        for entry in sys.path
        if entry and (is_ours(entry) or (os.path.abspath(entry) not in out and not is_below_a_root(entry)))
    ]
    left_out.extend(os.path.abspath(entry) for entry in sys.path if entry not in kept)
    sys.path[:] = kept


def is_ours(place: str) -> bool:
    """Whether a place belongs to this Python, to its virtual environment, or is where this aipass lies."""
    real = os.path.realpath(place)
    libraries = {
        os.path.join(os.path.realpath(prefix), name)
        for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)
        for name in ("lib", "lib64", sys.platlibdir)
    }
    here = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    return real == here or any(real == one or real.startswith(one + "/") for one in libraries)


def is_below_a_root(place: str) -> bool:
    """Whether a place lies in a folder with an `aipass.toml`, or below one: there agents write."""
    above, before = os.path.realpath(place), ""
    while above != before:
        if os.path.isfile(os.path.join(above, CONFIG_NAME)):
            return True
        above, before = os.path.dirname(above), above
    return False

"""A run's grant as a macOS sandbox profile (Seatbelt). Text only: never run on a Mac, and not used yet.

Seatbelt decides by the last matching rule, as gitignore does, so patterns become rules in the same order. It
cannot express: first-writer holds, temporary files that must become owned ones, and changes while the run is
active. Source of the language: the profiles in /System/Library/Sandbox/Profiles and `man sandbox-exec`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aipass.supervisor.fence.glob import ANY_DEPTH, OneOf, elements, segments_of
from aipass.supervisor.fence.territory import ANYWHERE_NEVER, ROOT_NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Devices that store nothing.
DEVICES = (
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/dtracehelper",
)
#: Services for host and user names, which every program needs.
SOCKETS = ("/private/var/run/mDNSResponder", "/private/var/run/systemkeychaincheck.socket")


def profile(
    root: str,
    owns: Iterable[str] | None,
    foreign: Iterable[str],
    own: Iterable[str],
    outside: Iterable[str] = (),
    sockets: Iterable[str] = (),
) -> str:
    """The profile text of one run.

    `owns` None: everything that the `owns` of other agents, `foreign`, does not match. `own`: folders that
    belong to the run alone. `outside`: further writable folders. All folders are absolute paths.
    """
    rules = ["(version 1)", "(allow default)", "(deny file-write*)"]
    if owns is None:
        rules.append(f"(allow file-write* (subpath {_text(root)}))")
        rules += [rule for pattern in foreign if (rule := _pattern(root, pattern, given=False))]
    else:
        rules += [rule for pattern in owns if (rule := _pattern(root, pattern, given=True))]
    # After the patterns: no `owns` can allow these.
    rules += [f"(deny file-write* (subpath {_text(f'{root}/{name}')}))" for name in ROOT_NEVER]
    rules += [
        f"(deny file-write* (regex {_regex(f'{re.escape(root)}/(.*/)?{re.escape(name)}(/.*)?')}))"
        for name in ANYWHERE_NEVER
    ]
    rules += [f"(allow file-write* (subpath {_text(folder)}))" for folder in (*own, *outside)]
    rules += [f"(allow file-write* (literal {_text(device)}))" for device in DEVICES]
    rules += ['(allow file-write* (regex #"^/dev/ttys[0-9]+$"))']
    # Another program could write on behalf of the run.
    rules.append("(deny network-outbound (remote unix-socket))")
    rules += [
        f"(allow network-outbound (remote unix-socket (path-literal {_text(path)})))"
        for path in (*SOCKETS, *sockets)
    ]
    rules += [f"(allow network-outbound (remote unix-socket (subpath {_text(folder)})))" for folder in own]
    rules += ["(deny signal)", "(allow signal (target same-sandbox))", "(deny mach-priv-task-port)"]
    return "\n".join(rules) + "\n"


def _pattern(root: str, pattern: str, *, given: bool) -> str | None:
    """One gitignore pattern as a rule; a leading `!` inverts it. None for a comment or an empty line."""
    found = segments_of(pattern)
    if not found.parts:
        return None
    text = re.escape(root) + "/"
    for number, part in enumerate(found.parts):
        last = number + 1 == len(found.parts)
        text += "(.*/)?" if part is ANY_DEPTH else _segment(part) + ("" if last else "/")
    text += "/.*" if found.only_folders else "" if found.open_end else "(/.*)?"
    verb = "allow" if found.include is given else "deny"
    return f"({verb} file-write* (regex {_regex(text)}))"


def _segment(segment: str) -> str:
    text = ""
    for part in elements(segment):
        if part is None:
            text += "[^/]*"
        elif isinstance(part, OneOf):
            text += _class(part)
        else:
            text += re.escape(part)
    return text


def _class(one: OneOf) -> str:
    if one.negated and one.characters == {"/"} and not one.ranges:
        return "[^/]"
    inside = "".join(f"{low}-{high}" for low, high in one.ranges) + "".join(
        sorted(one.characters - {"]", "^", "-"})
    )
    # A closing bracket comes first and a dash last in POSIX classes.
    inside = (
        ("]" if "]" in one.characters else "")
        + inside
        + ("^" if "^" in one.characters else "")
        + ("-" if "-" in one.characters else "")
    )
    return f"[{'^' if one.negated else ''}{inside}]"


def _text(path: str) -> str:
    """A string literal of the profile language."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _regex(text: str) -> str:
    """A regular expression of the profile language that matches whole paths."""
    return '#"^' + text.replace('"', '\\"') + '$"'

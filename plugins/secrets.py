"""Finds what looks like a key or a password, with the detectors of detect-secrets that know a key by its own form.

Those that only measure how random a text looks are left out: lock files and hashes look random, and are none.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from aipass import hookimpl
from aipass.text.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator

LEFT_OUT = {
    "Base64 High Entropy String",
    "Hex High Entropy String",
    "Secret Keyword",
    "IBM COS HMAC Credentials",
    "Private Key",
    # Its form takes 100 us a character for a text that says its name again and again.
    "Artifactory Credentials",
}
#: Keys of the services that agents themselves use: by the forms that their makers print.
OWN = {
    "Anthropic or OpenAI key": re.compile(r"\bsk-(?:ant-|proj-|svcacct-)?[A-Za-z0-9_-]{32,}"),
    "Google API key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}\b"),
    "Artifactory key": re.compile(r"\bAKCp[A-Za-z0-9]{10,}"),
    "GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"),
}
#: With all its lines, up to its end or that of the text.
PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:.*?-----END [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----|.*\Z)",
    re.DOTALL,
)
MAX_LINE = 32_000
#: A long line is looked at in pieces that overlap: time grows with the square of the length for what begins like a token
#: again and again. A key longer than an overlap would be cut; a JSON web token has 500 to 1,500 characters.
PIECE, OVERLAP = 4_000, 2_000
#: Between a name and its value some forms of detect-secrets take any number of spaces in three ways, in time that grows with the
#: cube of it: 6 s for 1,000 of them. No key holds a run of spaces.
SPACES, FEW_SPACES = re.compile(" {5,}"), "    "
#: With more of one kind in a piece, the whole line counts as one: a list of keys is no less secret.
MOST_IN_PIECE = 20
#: Beyond this many in a text, the rest of it counts as one.
MOST_FOUND = 500


@hookimpl
def find_secrets(text: str) -> list[Secret]:
    """Whatever looks like one, line by line. Takes time that grows with the text's length, whatever it says."""
    found = {
        Secret(text.count("\n", 0, match.start()) + 1, "Private Key", match[0]): None
        for match in islice(PRIVATE_KEY.finditer(text), MOST_FOUND)
    }
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            continue  # no person wrote it
        for secret in _in_line(number, line):
            found[secret] = None
        if len(found) > MOST_FOUND:
            rest = "".join(lines[number:])
            return [*found, *([Secret(number + 1, "Text after many secrets", rest)] if rest else [])]
    return list(found)


def _in_line(number: int, line: str) -> Iterator[Secret]:
    for start in range(0, max(1, len(line) - OVERLAP), PIECE - OVERLAP):
        piece = SPACES.sub(FEW_SPACES, line[start : start + PIECE])
        for detector in _detectors():
            kind = str(detector.secret_type)
            values = list(islice(detector.analyze_string(piece), MOST_IN_PIECE + 1))
            if len(values) > MOST_IN_PIECE:
                yield Secret(number, kind, line.rstrip("\r\n"))
                return
            for value in values:
                whole = _whole(detector, piece, str(value))
                yield Secret(number, kind, whole if whole in line else str(value))
        for kind, form in OWN.items():
            for match in form.finditer(piece):
                yield Secret(number, kind, match[0])


def _whole(detector: Any, line: str, value: str) -> str:  # noqa: ANN401 - detect-secrets has no types
    """All of a key: a detector may name only a part of what its own pattern found."""
    found = (match[0] for pattern in getattr(detector, "denylist", ()) for match in pattern.finditer(line))
    return max((one for one in found if value in one), key=len, default=value)


@cache
def _detectors() -> list[Any]:
    # Imported when first needed: it takes longer than all else that a start needs.
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    return [made() for kind, made in get_mapping_from_secret_type_to_class().items() if kind not in LEFT_OUT]

"""The secret finder: finds keys and passwords with those detectors of detect-secrets that match the form of a key.

Detectors that only measure randomness (entropy) are left out: lock files and hashes look random, and are no secrets.
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

#: Detectors that are not used. Patterns below replace those for private keys and Artifactory.
LEFT_OUT = {
    "Base64 High Entropy String",
    "Hex High Entropy String",
    "Secret Keyword",
    "IBM COS HMAC Credentials",
    "Private Key",
    # Its pattern takes 100 µs a character for a text that repeats the word: an agent could block the engine's thread.
    "Artifactory Credentials",
}
#: Keys of services that agents themselves use, by the forms that the vendors document.
OWN = {
    "Anthropic or OpenAI key": re.compile(r"\bsk-(?:ant-|proj-|svcacct-)?[A-Za-z0-9_-]{32,}"),
    "Google API key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}\b"),
    "Artifactory key": re.compile(r"\bAKCp[A-Za-z0-9]{10,}"),
    "GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"),
}
#: A private key with all its lines; without an end line, everything up to the end of the text.
PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:.*?-----END [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----|.*\Z)",
    re.DOTALL,
)
#: A longer line is generated, not written by a person, and is not searched.
MAX_LINE = 32_000
#: A long line is searched in overlapping pieces: for text that repeats the beginning of a token the time grows with the square
#: of the length. The overlap must be longer than any key: a JSON Web Token has 500 to 1,500 characters.
PIECE, OVERLAP = 4_000, 2_000
#: Between a name and its value some patterns of detect-secrets match spaces in three ways, so the time grows with the cube of
#: their number: 6 s for 1,000. No key contains a run of spaces, so runs are shortened.
SPACES, FEW_SPACES = re.compile(" {5,}"), "    "
#: With more matches of one kind in a piece, the whole line counts as one secret: a list of keys is secret as a whole.
MOST_IN_PIECE = 20
#: With more matches in a text, the rest of the text counts as one secret: nothing is left unmasked.
MOST_FOUND = 500


@hookimpl
def find_secrets(text: str) -> list[Secret]:
    """Return the secrets in a text with their lines. The time is linear in the length, for any text."""
    found = {
        Secret(text.count("\n", 0, match.start()) + 1, "Private Key", match[0]): None
        for match in islice(PRIVATE_KEY.finditer(text), MOST_FOUND)
    }
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            continue
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
    """Return the whole key: some detectors return only a part of what their own pattern matched."""
    found = (match[0] for pattern in getattr(detector, "denylist", ()) for match in pattern.finditer(line))
    return max((one for one in found if value in one), key=len, default=value)


@cache
def _detectors() -> list[Any]:
    # A late import: it takes longer than everything else at a start.
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    return [made() for kind, made in get_mapping_from_secret_type_to_class().items() if kind not in LEFT_OUT]

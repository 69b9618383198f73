"""Full-text search: the words that are indexed of a text, and the FTS5 query for what a person typed. Pure.

SQLite's FTS5 (porter over unicode61) splits at every character that is no letter or digit, removes accents and stems English
words. So the parts of `parse_url` and `src/api/login.py` are words already. Names in camel case are split here.
"""

from __future__ import annotations

import re

#: Characters of a text that are indexed.
MAX_INDEXED = 20_000
#: Words of a query that are searched for: a pasted page would make a query that takes long.
MAX_TERMS = 24
#: A typed word of this length also matches longer words. The index keeps prefixes of 3 letters (`prefix = '3'`).
PREFIX_CHARS = 3
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[A-Za-z])(?=[0-9])")
_WORD = re.compile(r"[^\W_]+")
_NAME = re.compile(r"[\w)][_./:-][\w(]|(?<=[a-z0-9])[A-Z]|[0-9]|^[A-Z][A-Z_]+$")
#: Stop words: left out of a query, unless it has no other words.
_COMMON = frozenset(
    [
        "a",
        "about",
        "all",
        "am",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "can",
        "did",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "me",
        "my",
        "no",
        "not",
        "of",
        "on",
        "or",
        "our",
        "out",
        "should",
        "so",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "up",
        "us",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)


def indexed(text: str, *more: str) -> str:
    """Return the words to index: the text, the words in `more`, and the parts of names in camel case."""
    whole = " ".join((text, *more))[:MAX_INDEXED]
    names = {word for word in _WORD.findall(whole) if _CAMEL.search(word)}
    return whole + "".join(f" {' '.join(_CAMEL.split(name))}" for name in sorted(names))


def query(asked: str) -> str:
    """Return an FTS5 query that matches any of the typed words; empty if there is no word.

    No input is a syntax error: every term is quoted.
    """
    found: dict[str, str] = {}
    for typed in asked.split():
        parts = _WORD.findall(typed)
        if parts:
            found.setdefault(typed.casefold(), _term(typed, parts))
    terms = [term for typed, term in found.items() if " ".join(_WORD.findall(typed)) not in _COMMON]
    return " OR ".join((terms or list(found.values()))[:MAX_TERMS])


def names(asked: str) -> list[str]:
    """Return the typed words that are names: paths, functions, error codes."""
    found = (typed.strip("\"'`.,:;!?()[]{}<>") for typed in asked.split())
    return list(dict.fromkeys(one.casefold() for one in found if len(one) > 2 and _NAME.search(one)))[
        :MAX_TERMS
    ]


def _term(typed: str, parts: list[str]) -> str:
    """Return the query for one typed word: the word, the parts of its name, or a prefix."""
    ways = [" ".join(parts)]
    if _CAMEL.search(typed):
        ways.append(" ".join(piece for part in parts for piece in _CAMEL.split(part)))
    quoted = [f'"{way}"' for way in dict.fromkeys(ways)]
    if len(parts) == 1 and len(parts[0]) >= PREFIX_CHARS:
        quoted.append(f'"{parts[0]}"*')
    return quoted[0] if len(quoted) == 1 else f"({' OR '.join(quoted)})"

"""Words that are searched for, and words that are found: what is indexed of a text, what is asked of the index. Pure.

The index splits at everything that is no letter or digit, folds accents and stems English words (SQLite's FTS5, porter over
unicode61); so `parse_url`, `src/api/login.py` and `dropped` are found by their parts already. Names in camel case are split here.
"""

from __future__ import annotations

import re

#: Of a text, for the index.
MAX_INDEXED = 20_000
MAX_TERMS = 24
#: From this length on the beginning of a word finds it.
PREFIX_CHARS = 3
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[A-Za-z])(?=[0-9])")
_WORD = re.compile(r"[^\W_]+")
_NAME = re.compile(r"[\w)][_./:-][\w(]|(?<=[a-z0-9])[A-Z]|[0-9]|^[A-Z][A-Z_]+$")
#: Too common to be worth asking for, unless nothing else was asked.
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
    """What the index gets of a text and of words that belong to it: itself, and the parts of its names."""
    whole = " ".join((text, *more))[:MAX_INDEXED]
    names = {word for word in _WORD.findall(whole) if _CAMEL.search(word)}
    return whole + "".join(f" {' '.join(_CAMEL.split(name))}" for name in sorted(names))


def query(asked: str) -> str:
    """What people typed, as an expression of FTS5: any of the words; empty where there is no word in it.

    Whatever is typed, it is no syntax error: every term is quoted.
    """
    found: dict[str, str] = {}
    for typed in asked.split():
        parts = _WORD.findall(typed)
        if parts:
            found.setdefault(typed.casefold(), _term(typed, parts))
    terms = [term for typed, term in found.items() if " ".join(_WORD.findall(typed)) not in _COMMON]
    return " OR ".join((terms or list(found.values()))[:MAX_TERMS])


def names(asked: str) -> list[str]:
    """What was typed that is no plain word but a name of something: a path, a function, a code."""
    found = (typed.strip("\"'`.,:;!?()[]{}<>") for typed in asked.split())
    return list(dict.fromkeys(one.casefold() for one in found if len(one) > 2 and _NAME.search(one)))[
        :MAX_TERMS
    ]


def _term(typed: str, parts: list[str]) -> str:
    """One word that was typed: as it is, by the parts of its name, and as a beginning."""
    ways = [" ".join(parts)]
    if _CAMEL.search(typed):
        ways.append(" ".join(piece for part in parts for piece in _CAMEL.split(part)))
    quoted = [f'"{way}"' for way in dict.fromkeys(ways)]
    if len(parts) == 1 and len(parts[0]) >= PREFIX_CHARS:
        quoted.append(f'"{parts[0]}"*')
    return quoted[0] if len(quoted) == 1 else f"({' OR '.join(quoted)})"

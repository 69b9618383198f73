"""A hundred questions as people ask them, over four hundred notes that were written without knowing how they are ranked.

`words`: some words of the note in other forms; `paraphrase`: hardly any word of it; `name`: a function, a file, a code.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from aipass_plugins.embeddings import Embeddings

from aipass.features.memory.full_text import indexed
from aipass.features.memory.recall import recall
from aipass.ledger import Ledger

SET = json.loads(Path(__file__).with_name("questions.json").read_text())
#: The tests take aipass's own variables out of the environment.
MODEL = os.environ.get("AIPASS_MODEL")
KINDS = ("words", "paraphrase", "name")


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    ledger = Ledger.open(tmp_path_factory.mktemp("questions") / "ledger.db")
    ids = {}
    with ledger.transaction():
        for note in SET["notes"]:
            about = {"source": note["source"], "agent": note["agent"], "text": note["text"], "tags": "[]"}
            about |= {"path": None, "time": 0.0, "dispatch": None, "run": None, "detail": "{}"}
            ids[note["key"]] = ledger.run("insert_memory", about)
            ledger.run("put_words", {"id": ids[note["key"]], "words": indexed(note["text"])})
    yield ledger, ids
    ledger.close()


def places(house, meanings=()):
    """For each question, by its kind: at which place what was wanted stands; a table of them is printed."""
    ledger, ids = house
    found = {kind: [] for kind in KINDS}
    for question in SET["questions"]:
        hits = [
            hit.row["id"] for hit in recall(ledger, question["asked"], now=0.0, limit=200, meanings=meanings)
        ]
        wanted = {ids[key] for key in question["wanted"]}
        found[question["kind"]].append(
            next((place for place, hit in enumerate(hits, 1) if hit in wanted), 999)
        )
    found["all"] = [place for kind in KINDS for place in found[kind]]
    for kind, those in found.items():
        print(f"{kind:>12}: {len(those):3} questions, hit@1 {rate(those, 1):.0%}, hit@5 {rate(those, 5):.0%}")
    return found


def rate(those, most):
    return sum(place <= most for place in those) / len(those)


def test_the_set_is_as_it_says():
    assert Counter(question["kind"] for question in SET["questions"]) == {
        "words": 40,
        "paraphrase": 40,
        "name": 20,
    }
    assert len({note["text"] for note in SET["notes"]}) == 400
    keys = {note["key"] for note in SET["notes"]}
    assert all(set(question["wanted"]) <= keys for question in SET["questions"])


def test_words_alone_find_whatever_shares_a_word_or_a_name(house):
    found = places(house)
    assert rate(found["words"], 1) >= 0.95
    assert rate(found["name"], 1) >= 0.95
    assert rate(found["all"], 1) >= 0.55


@pytest.mark.skipif(MODEL is None, reason="AIPASS_MODEL names no model: `make test-model`")
def test_with_a_model_more_is_found_and_nothing_less(house, tmp_path):
    index = Embeddings(Path(str(MODEL)), tmp_path)
    ledger, ids = house
    texts = [
        (number, row["text"]) for number in ids.values() if (row := ledger.one("memory", {"id": number}))
    ]
    for begin in range(0, len(texts), 32):
        index.learn(texts[begin : begin + 32])
    words, fused = places(house), places(house, [index])
    for kind in KINDS:
        assert rate(fused[kind], 5) >= rate(words[kind], 5)
    assert rate(fused["all"], 1) >= 0.65
    assert rate(fused["all"], 5) >= 0.75
    assert recall(ledger, "qwertzuiop", now=0.0, meanings=[index]) == []

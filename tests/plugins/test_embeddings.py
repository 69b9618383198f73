"""Memory by meaning: the model's arithmetic, the index that it fills, and the engine that lets it learn."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from aipass_plugins import embeddings
from aipass_plugins.embeddings import Bert, Embeddings
from patience import PATIENCE, until
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from aipass.errors import ConfigError, PluginError
from aipass.features.memory.recall import recall

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *["redis", "cache", "sessions", "failover", "login", "page", "button", "colour", "tests", "slow"],
]
HIDDEN, INNER, LAYERS, HEADS, PLACES = 16, 32, 2, 4, 24
TOML = '[agents.api]\ndriver = "command"\ncommand = ["true"]\n'


def make_model(folder, *, kind="bert", seed=7, first=False):
    """A BERT model of random numbers, as sentence-transformers stores one."""
    folder.mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(seed)

    def some(*shape):
        return dice.normal(0, 0.3, shape).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": some(len(WORDS), HIDDEN),
        "embeddings.position_embeddings.weight": some(PLACES, HIDDEN) * 0.1,
        "embeddings.token_type_embeddings.weight": some(2, HIDDEN) * 0.1,
    }
    norms = ["embeddings.LayerNorm"]
    linears = {}
    for number in range(LAYERS):
        name = f"encoder.layer.{number}"
        linears |= {f"{name}.attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")}
        linears |= {f"{name}.attention.output.dense": (HIDDEN, HIDDEN)}
        linears |= {f"{name}.intermediate.dense": (INNER, HIDDEN), f"{name}.output.dense": (HIDDEN, INNER)}
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for name in norms:
        tensors |= {f"{name}.weight": 1 + some(HIDDEN) * 0.1, f"{name}.bias": some(HIDDEN) * 0.1}
    for name, (out, into) in linears.items():
        tensors |= {f"{name}.weight": some(out, into), f"{name}.bias": some(out) * 0.1}
    save_file(tensors, folder / "model.safetensors")
    settings = {
        "model_type": kind,
        "hidden_act": "gelu",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
    }
    (folder / "config.json").write_text(
        json.dumps({**settings, "layer_norm_eps": 1e-12, "max_position_embeddings": PLACES})
    )
    tokenizer = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": first}))
    return folder


def by_hand(folder, words, *, first=False):
    """The same arithmetic, number by number, for one text without any padding."""
    from safetensors.numpy import load_file

    w = {
        name: tensor.astype(float).tolist()
        for name, tensor in load_file(folder / "model.safetensors").items()
    }

    def linear(x, name):
        return [
            sum(a * b for a, b in zip(row, x, strict=True)) + c
            for row, c in zip(w[f"{name}.weight"], w[f"{name}.bias"], strict=True)
        ]

    def norm(x, name):
        mean = sum(x) / len(x)
        deviation = math.sqrt(sum((a - mean) ** 2 for a in x) / len(x) + 1e-12)
        return [
            (a - mean) / deviation * g + b
            for a, g, b in zip(x, w[f"{name}.weight"], w[f"{name}.bias"], strict=True)
        ]

    def add(x, y):
        return [a + b for a, b in zip(x, y, strict=True)]

    ids = [2, *(WORDS.index(word) for word in words), 3]
    e = "embeddings"
    state = [
        norm(
            add(
                add(w[f"{e}.word_embeddings.weight"][one], w[f"{e}.position_embeddings.weight"][place]),
                w[f"{e}.token_type_embeddings.weight"][0],
            ),
            f"{e}.LayerNorm",
        )
        for place, one in enumerate(ids)
    ]
    size = HIDDEN // HEADS
    for number in range(LAYERS):
        name = f"encoder.layer.{number}"
        q, k, v = (
            [linear(x, f"{name}.attention.self.{part}") for x in state] for part in ("query", "key", "value")
        )
        seen = []
        for i in range(len(state)):
            row = []
            for head in range(HEADS):
                part = slice(head * size, (head + 1) * size)
                scores = [
                    math.exp(
                        sum(a * b for a, b in zip(q[i][part], k[j][part], strict=True)) / math.sqrt(size)
                    )
                    for j in range(len(state))
                ]
                row += [
                    sum(s * v[j][part][n] for j, s in enumerate(scores)) / sum(scores) for n in range(size)
                ]
            seen.append(row)
        state = [
            norm(add(x, linear(y, f"{name}.attention.output.dense")), f"{name}.attention.output.LayerNorm")
            for x, y in zip(state, seen, strict=True)
        ]
        inner = [
            [0.5 * a * (1 + math.erf(a / math.sqrt(2))) for a in linear(x, f"{name}.intermediate.dense")]
            for x in state
        ]
        state = [
            norm(add(x, linear(y, f"{name}.output.dense")), f"{name}.output.LayerNorm")
            for x, y in zip(state, inner, strict=True)
        ]
    pooled = state[0] if first else [sum(x[n] for x in state) / len(state) for n in range(HIDDEN)]
    length = math.sqrt(sum(a * a for a in pooled))
    return [a / length for a in pooled]


# fmt: off
@pytest.mark.parametrize("first", [False, True])
def test_the_arithmetic_is_that_of_the_papers_also_for_texts_of_several_lengths_at_once(tmp_path, first):
    model = Bert(make_model(tmp_path / "model", first=first))
    texts = ["redis", "cache sessions failover login page", "slow tests"]
    for text, vector in zip(texts, model.vectors(texts), strict=True):
        assert vector == pytest.approx(by_hand(tmp_path / "model", text.split(), first=first), abs=1e-5)
# fmt: on


def test_a_text_that_is_too_long_is_cut(tmp_path):
    model = Bert(make_model(tmp_path / "model"))
    assert model.vectors(["redis " * 5_000]).shape == (1, HIDDEN)
    assert np.isfinite(model.vectors(["", "\0", "ключ 鍵"])).all()


# -- the index ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path):
    return Embeddings(make_model(tmp_path / "model"), tmp_path / "index")


def test_the_nearest_are_found_and_what_is_forgotten_is_nowhere(index, tmp_path):
    assert index.nearest("redis", 5) == []
    assert index.ids() == []
    index.learn([(3, "redis cache failover"), (5, "login page button"), (9, "slow tests")])
    assert index.ids() == [3, 5, 9]
    found = index.nearest("redis cache failover", 2)
    assert found[0][0] == 3
    assert found[0][1] == pytest.approx(1.0, abs=0.03)
    again = Embeddings(tmp_path / "model", tmp_path / "index")
    again.learn([(5, "redis cache failover")])
    assert {number for number, _ in index.nearest("redis cache failover", 2)} == {3, 5}
    index.forget(3)
    index.forget(77)
    assert 3 not in {number for number, _ in index.nearest("redis cache failover", 9)}
    (file,) = (tmp_path / "index").iterdir()
    with sqlite3.connect(file) as db:
        assert [row[0] for row in db.execute("SELECT id FROM vectors ORDER BY id")] == [5, 9]


def test_another_model_begins_anew(index, tmp_path):
    index.learn([(3, "redis")])
    other = Embeddings(make_model(tmp_path / "model", seed=8), tmp_path / "index")
    assert other.ids() == []


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json does not exist"),
        (lambda folder: make_model(folder, kind="t5"), "has a t5 model; it must be a BERT model"),
    ],
)
def test_a_folder_that_holds_no_such_model_is_refused_by_name(tmp_path, spoil, told):
    folder = make_model(tmp_path / "model")
    spoil(folder)
    with pytest.raises(ConfigError, match=told):
        Embeddings(folder, tmp_path / "index").learn([(1, "x")])


def test_without_its_libraries_it_says_how_to_install_them(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r'pip install "aipass-engine\[embeddings\]"'):
        Embeddings(make_model(tmp_path / "model"), tmp_path / "index")


# -- behind the engine -------------------------------------------------------------------------------------------------


class Fake:
    """An index of a third party: it keeps what it is told."""

    def __init__(self):
        self.name, self.texts, self.broken = "fake", {}, False

    def ids(self):
        return list(self.texts)

    def learn(self, texts):
        if self.broken:
            raise RuntimeError("no room")
        self.texts |= dict(texts)

    def forget(self, number):
        self.texts.pop(number, None)

    def nearest(self, asked, limit):
        return [(number, 0.9) for number, text in self.texts.items() if "same thing" in text][:limit]


def plugin(*indexes):
    from aipass import hookimpl

    def register_meanings(folder):
        assert folder.parent.name == "meaning"
        return list(indexes)

    return SimpleNamespace(__name__="meanings", register_meanings=hookimpl(register_meanings))


def test_register_meanings_lets_an_index_learn_what_is_remembered_as_it_comes(aipass_bench):
    fake = Fake()
    house = aipass_bench(TOML, plugin(fake))
    for text in ("the same thing in other words", "nothing of that"):
        house.ask("note", do="learning", text=text, agent="api")
    house.ask("note", do="todo", text="no todo", agent="api")
    until(lambda: len(fake.texts) == 2)
    found = recall(house.ledger, "zebra", now=0.0, meanings=[fake])
    assert [hit.row["text"] for hit in found] == ["the same thing in other words"]
    assert recall(house.ledger, "zebra", now=0.0) == []
    assert recall(house.ledger, "zebra", now=0.0, agent="web", meanings=[fake]) == []
    assert recall(house.ledger, "zebra", now=0.0, sources=["answer"], meanings=[fake]) == []
    house.ask("forget", memory=found[0].row["id"])
    until(lambda: list(fake.texts.values()) == ["nothing of that"])
    house.restart()
    house.ask("note", do="learning", text="after a restart", agent="api")
    until(lambda: "after a restart" in fake.texts.values())


def test_register_meanings_takes_indexes_only(aipass_bench):
    with pytest.raises(PluginError, match="which is not an index"):
        aipass_bench(TOML, plugin(object()))


def test_an_index_that_raises_is_left_out_and_the_words_go_on(aipass_bench):
    fake, good = Fake(), Fake()
    fake.broken = True
    house = aipass_bench(TOML, plugin(fake, good))
    for text in ("redis is gone", "sqlite is here"):
        house.ask("note", do="learning", text=text, agent="api")
    until(lambda: len(good.texts) == 2)
    fake.broken = False
    house.ask("note", do="learning", text="one more", agent="api")
    until(lambda: len(good.texts) == 3)
    assert fake.texts == {}
    assert [hit.row["text"] for hit in recall(house.ledger, "redis", now=0.0)] == ["redis is gone"]


def test_a_long_backlog_is_learned_whole_also_when_something_is_rewritten_meanwhile(aipass_bench):
    from state_kit import body, save

    fake, gate = Fake(), threading.Event()
    house = aipass_bench(TOML + "[state]\nlearnings = 900\n", plugin(fake))
    for number in range(100):
        house.ask("note", do="learning", text=f"text {number}", agent="api")
    until(lambda: len(fake.texts) == 100)
    fake.texts, real = {}, fake.learn  # another model, and a new index
    fake.learn = lambda texts: (gate.wait(PATIENCE), real(texts))
    house.restart()
    document = body(house)
    document["learnings"][-1]["text"] = "rewritten"
    save(house, document)
    gate.set()
    until(lambda: len(fake.texts) == 100)
    assert "rewritten" in fake.texts.values()


def test_what_was_forgotten_just_before_a_kill_is_forgotten_by_the_index_too(aipass_bench, monkeypatch):
    fake = Fake()
    house = aipass_bench(TOML, plugin(fake))
    for text in ("the secret thing", "another"):
        house.ask("note", do="learning", text=text, agent="api")
    until(lambda: len(fake.texts) == 2)
    monkeypatch.setattr(house.engine, "_act", lambda step: None)  # killed between commit and effect
    house.ask("forget", memory=1)
    house.restart()
    until(lambda: list(fake.texts.values()) == ["another"])


def test_a_model_in_aipass_toml_is_used_by_recall_and_by_nobody_else(repository, tmp_path):
    folder = make_model(tmp_path / "a model")
    repository.write("aipass.toml", TOML + f"[memory]\nmodel = {json.dumps(str(folder))}\n")
    repository.aipass("init")
    repository.aipass("up", "--detach")
    for text in ("redis cache failover", "login page button"):
        repository.aipass("note", text, "--agent", "api")
    index = repository.root / ".aipass/meaning"
    until(lambda: list(index.rglob("*.db")))
    for path in index.rglob("*.db"):
        path.chmod(0o444)
    found = json.loads(repository.aipass("recall", "redis cache failover", "--json").stdout)
    assert found[0]["text"] == "redis cache failover"
    assert found[0]["score"] > 0.9
    (folder / "model.safetensors").unlink()
    without = repository.aipass("recall", "failover")
    assert "redis cache failover" in without.stdout
    assert "results are by words only" in without.stderr
    repository.aipass("down")
    refused = repository.aipass("up", "--detach", check=2)
    assert "memory.model" in refused.stderr

"""The semantic index: a small sentence embedding model from a local folder, run with numpy. It never uses a network.

`pip install "aipass-engine[embeddings]"`, and `[memory] model` names the folder: any BERT model as sentence-transformers stores it
(`config.json`, `tokenizer.json`, `model.safetensors`, `1_Pooling/config.json`), such as all-MiniLM-L6-v2 or bge-small.
The usual library (sentence-transformers) takes seconds to import, and every `aipass recall` would wait for that.
"""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipass import hookimpl
from aipass.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aipass.config.model import Config

    Floats = NDArray[np.float32]

NAME = "embeddings"
#: The files that every model has.
FILES = ("config.json", "tokenizer.json", "model.safetensors")
#: The tokens of a text that are used, if the model has no limit of its own.
MAX_TOKENS = 256
#: Vectors are stored as bytes from -127 to 127, a quarter of the size: the rounding error is far below the distance of two texts.
SCALE = 127
#: Vectors that are compared in one matrix product: bounds the memory.
CHUNK = 20_000
#: Values in one piece: 128 KiB of float32, which stays in the processor's cache.
GELU_PIECE = 1 << 15


@hookimpl
def register_meanings(config: Config, folder: Path) -> list[Embeddings]:
    """Return the index if aipass.toml names a model. Raises ConfigError. `folder`: for its files, one for each ledger."""
    if config.memory.model is None:
        return []
    return [Embeddings(Path(config.memory.model).expanduser(), folder)]


class Embeddings:
    """An index of vectors in one SQLite file. The model is loaded at its first use, because many starts need none."""

    name = NAME

    def __init__(self, model: Path, folder: Path) -> None:
        for name in FILES:
            if not (model / name).is_file():
                raise ConfigError(
                    f"aipass.toml: memory.model: {model / name} does not exist; name the folder of a BERT model as sentence-transformers stores it"
                )
        for library in ("numpy", "safetensors", "tokenizers"):
            if importlib.util.find_spec(library) is None:
                raise ConfigError(
                    f'aipass.toml: memory.model needs {library}; install it with: pip install "aipass-engine[embeddings]"'
                )
        found = (model / FILES[2]).stat()
        self._folder = model
        # Vectors of two models cannot be compared, so each model has its own file.
        self._file = folder / f"{NAME}-{found.st_size}-{found.st_mtime_ns}.db"
        self._model: Bert | None = None

    def ids(self) -> list[int]:
        """Return the ids of all stored vectors."""
        if not self._file.exists():
            return []
        with closing(self._read()) as db:
            return [number for (number,) in db.execute("SELECT id FROM vectors")]

    def learn(self, texts: Sequence[tuple[int, str]]) -> None:
        """Store the vectors of texts, by id, in one transaction; a known id is replaced."""
        import numpy as np

        vectors = np.rint(self._vectors([text for _, text in texts]) * SCALE).astype(np.int8)
        rows = [(number, vector.tobytes()) for (number, _), vector in zip(texts, vectors, strict=True)]
        # `closing`, because the connection's own context manager ends the transaction and keeps the file open.
        with closing(self._open()) as db, db:
            db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    def forget(self, number: int) -> None:
        """Delete a text's vector, also from the free pages of the file. An unknown id is no error."""
        if self._file.exists():
            with closing(self._open()) as db, db:
                db.execute("DELETE FROM vectors WHERE id = ?", (number,))

    def nearest(self, asked: str, limit: int) -> list[tuple[int, float]]:
        """Return the closest texts by the cosine of their vectors, best first. Compares all vectors."""
        import numpy as np

        if not self._file.exists():
            return []
        wanted = self._vectors([asked])[0]
        found: list[tuple[int, float]] = []
        with closing(self._read()) as db:
            cursor = db.execute("SELECT id, vector FROM vectors")
            while rows := cursor.fetchmany(CHUNK):
                data = b"".join(row[1] for row in rows)
                matrix = np.frombuffer(data, np.int8).reshape(len(rows), -1).astype(np.float32)
                closeness = matrix @ wanted / SCALE
                best = np.argsort(-closeness)[:limit]
                found += [(int(rows[place][0]), float(closeness[place])) for place in best]
        return sorted(found, key=lambda one: -one[1])[:limit]

    def _read(self) -> sqlite3.Connection:
        # Read-only: agents run `aipass recall` too, and the sandbox does not let them write here.
        return sqlite3.connect(f"{self._file.absolute().as_uri()}?mode=ro", uri=True, timeout=30.0)

    def _open(self) -> sqlite3.Connection:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in self._file.parent.glob(f"{NAME}-*.db"):
            if other != self._file:
                other.unlink(missing_ok=True)  # made by the previous model
        db = sqlite3.connect(self._file, timeout=30.0)
        # A vector says much about its text, so a deleted one is overwritten.
        db.execute("PRAGMA secure_delete = ON")
        db.execute("CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, vector BLOB NOT NULL)")
        return db

    def _vectors(self, texts: Sequence[str]) -> Floats:
        if self._model is None:
            self._model = Bert(self._folder)
        return self._model.vectors(texts)


class Bert:
    """The encoder of a BERT model, with mean pooling (or the first token) and vectors of length one.

    Devlin et al., "BERT", 2019; Reimers and Gurevych, "Sentence-BERT", 2019. Raises ConfigError for another kind of model.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        config = _json(folder / "config.json")
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise ConfigError(
                f"aipass.toml: memory.model: {folder} has a {config.get('model_type')} model; it must be a BERT model"
            )
        self._heads, self._layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
        self._epsilon = float(config["layer_norm_eps"])
        self._weights: dict[str, Floats] = {
            name.removeprefix("bert."): tensor
            for name, tensor in load_file(folder / "model.safetensors").items()
        }
        pooling = folder / "1_Pooling/config.json"
        self._first_only = pooling.exists() and bool(_json(pooling).get("pooling_mode_cls_token"))
        limits = folder / "sentence_bert_config.json"
        most = int(_json(limits).get("max_seq_length", MAX_TOKENS)) if limits.exists() else MAX_TOKENS
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(min(most, int(config["max_position_embeddings"])))
        self._tokenizer.enable_padding()

    def vectors(self, texts: Sequence[str]) -> Floats:
        """Return one vector of length one for each text, in an array of (texts, hidden size)."""
        import numpy as np

        tokens = self._tokenizer.encode_batch(list(texts))
        ids = np.array([one.ids for one in tokens])
        mask = np.array([one.attention_mask for one in tokens], np.float32)
        state = (
            self._weights["embeddings.word_embeddings.weight"][ids]
            + self._weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
            + self._weights["embeddings.token_type_embeddings.weight"][0]
        )
        state = self._norm(state, "embeddings.LayerNorm")
        # Padding gets a score of -1e9, so its weight after the softmax is 0.
        hidden = (1.0 - mask)[:, None, None, :] * np.float32(-1e9)
        for number in range(self._layers):
            state = self._layer(state, hidden, f"encoder.layer.{number}")
        pooled = (
            state[:, 0]
            if self._first_only
            else (state * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        )
        found: Floats = (pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)).astype(
            np.float32
        )
        return found

    def _layer(self, state: Floats, hidden: Floats, name: str) -> Floats:
        import numpy as np

        texts, length, size = state.shape

        def heads(part: str) -> Floats:
            split = self._linear(state, f"{name}.attention.self.{part}").reshape(
                texts, length, self._heads, -1
            )
            return split.transpose(0, 2, 1, 3)

        scores = (
            heads("query") @ heads("key").transpose(0, 1, 3, 2) / np.float32(np.sqrt(size / self._heads))
            + hidden
        )
        # Without the maximum, `exp` of a large score would overflow float32.
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        seen = (scores @ heads("value")).transpose(0, 2, 1, 3).reshape(texts, length, size)
        state = self._norm(
            state + self._linear(seen, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm"
        )
        inner = _gelu(self._linear(state, f"{name}.intermediate.dense"))
        return self._norm(state + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, state: Floats, name: str) -> Floats:
        weight = self._weights[f"{name}.weight"]
        # As one matrix: numpy multiplies a stack of matrices one by one, which is slower.
        flat = state.reshape(-1, state.shape[-1]) @ weight.T + self._weights[f"{name}.bias"]
        found: Floats = flat.reshape(*state.shape[:-1], -1)
        return found

    def _norm(self, state: Floats, name: str) -> Floats:
        import numpy as np

        centred = state - state.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + self._epsilon)
        found: Floats = scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return found


def _gelu(values: Floats) -> Floats:
    """Return x·Φ(x), with Φ by the approximation 7.1.26 of Abramowitz and Stegun, whose error is below 1.5e-7."""
    # numpy has no `erf`, and scipy would be another dependency.
    import numpy as np

    found = np.empty(values.size, np.float32)
    flat = values.reshape(-1)
    for begin in range(0, flat.size, GELU_PIECE):
        piece = flat[begin : begin + GELU_PIECE]
        scaled = np.abs(piece) * np.float32(0.7071067811865476)
        t = 1.0 / (1.0 + np.float32(0.3275911) * scaled)
        series = t * (
            0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
        )
        error = np.sign(piece) * (1.0 - series * np.exp(-scaled * scaled))
        found[begin : begin + GELU_PIECE] = 0.5 * piece * (1.0 + error)
    return found.reshape(values.shape)


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_bytes())
    return found if isinstance(found, dict) else {}

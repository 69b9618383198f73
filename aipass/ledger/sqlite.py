"""One SQLite file: opened with care, written by one engine, read by everybody."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aipass.errors import LedgerError, PluginError
from aipass.event import Event, Fact
from aipass.ledger import extension
from aipass.ledger.statements import migrations, schema, statements

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from aipass.action import Action
    from aipass.clock import Instant

Row = sqlite3.Row

#: In the file's header: "aips". Tells a ledger from any other SQLite file.
APPLICATION_ID = 0x61697073
# A reader (status, a long `events`) may hold a checkpoint back, never a commit; this only bounds a second writer, and whoever
# takes a lock to keep us waiting: the engine looks for that one then.
BUSY_TIMEOUT_S = 2.0
# The WAL is folded back at this many pages (4 MB); larger is faster in a storm and slower to open after a crash.
CHECKPOINT_PAGES = 1000
PRUNE_SLICE = 5000
# An engine that starts for the first time has the file before its tables.
MAKING_LOOKS, MAKING_PAUSE_S = 50, 0.02


class Ledger:
    """The record. Ids of events and actions are given here, so that a batch is written with one statement each."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._db = connection
        self.path = path
        self._sql = dict(statements())
        self._extended: set[str] = set()
        self._is_read_only = bool(connection.execute("PRAGMA query_only").fetchone()[0])
        self._events: list[tuple[Any, ...]] = []
        self._actions: list[tuple[Any, ...]] = []
        row = connection.execute(self._sql["last_ids"]).fetchone()
        self._last_event, self._last_action = int(row[0]), int(row[1])

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open the ledger for writing, making or migrating it.

        Raises LedgerError for a file that is damaged, from a newer aipass, or not a ledger; such a file is not touched.
        """
        version = _inspect(path) if path.exists() and path.stat().st_size else 0
        try:
            if version and path.stat().st_nlink > 1:
                _own(path)
            db = _connect(path, "rwc")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            _migrate(db, version)
            os.chmod(path, 0o600)
            return cls(db, str(path))
        except (sqlite3.Error, OSError) as exc:
            refused = LedgerError(
                f"{path}: cannot be opened ({exc}); check free space and permissions of its folder"
            )
            refused.locked = _is_busy(exc)
            raise refused from exc

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Open the ledger for reading only.

        Raises LedgerError as `open` does, and where there is none yet.
        """
        if not path.exists():
            raise LedgerError(f"{path}: there is no ledger yet; `aipass up` makes one")
        for _ in range(MAKING_LOOKS):
            if _inspect(path, quick=True):
                break
            time.sleep(MAKING_PAUSE_S)
        else:
            raise LedgerError(f"{path}: is empty; `aipass up` makes a new one in its place")
        try:
            db = _connect(path, "ro")
            db.execute("PRAGMA query_only = 1")
            return cls(db, str(path))
        except sqlite3.Error as exc:
            raise LedgerError(f"{path}: cannot be read ({exc})") from exc

    @classmethod
    def in_memory(cls) -> Ledger:
        """A ledger that lives as long as the object, for tests and rehearsals."""
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        db.row_factory = sqlite3.Row
        db.text_factory = _text
        _migrate(db, 0)
        return cls(db, ":memory:")

    def files(self) -> tuple[Path, ...]:
        """The files on which SQLite has its locks."""
        return tuple(Path(self.path + suffix) for suffix in ("", "-wal", "-shm"))

    def close(self) -> None:
        """Close the file; what was not committed is gone."""
        self._db.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is written inside. Raises LedgerError where the disk refuses, with nothing written."""
        last = self._last_event, self._last_action
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self.flush()
            self._db.execute("COMMIT")
        except BaseException as exc:
            self._events.clear()
            self._actions.clear()
            self._last_event, self._last_action = last
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(exc, sqlite3.OperationalError):
                refused = LedgerError(
                    f"{self.path}: cannot be written ({exc}); free some space, or see to the disk"
                )
                refused.locked = _is_busy(exc)
                raise refused from exc
            raise

    @contextmanager
    def part(self) -> Iterator[None]:
        """Inside a transaction: all or nothing of what is written inside; what was written before stays. Outside of one: nothing special."""
        if not self._db.in_transaction:
            yield
            return
        events, actions = self._events.copy(), self._actions.copy()
        last = self._last_event, self._last_action
        self._db.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK TO part")
                self._db.execute("RELEASE part")
            # As they were, also those that were flushed inside and are rolled back with it.
            self._events, self._actions = events, actions
            self._last_event, self._last_action = last
            raise
        self._db.execute("RELEASE part")

    def record(self, fact: Fact, now: Instant) -> Event:
        """Give a fact its id and time. Written with the transaction."""
        self._last_event += 1
        event = Event(
            self._last_event,
            now.wall,
            fact.kind,
            fact.source,
            fact.path,
            fact.ref,
            fact.by,
            fact.cause,
            fact.detail,
        )
        detail = json.dumps(fact.detail, separators=(",", ":")) if fact.detail else "{}"
        self._events.append(
            (
                event.id,
                now.wall,
                fact.kind,
                fact.source,
                storable(fact.path),
                storable(fact.ref),
                fact.by,
                fact.cause,
                detail,
            )
        )
        return event

    def add_action(
        self,
        event: int,
        handler: str,
        action: Action,
        state: str,
        outcome: str,
        effect: str | None = None,
    ) -> int:
        """Record what a handler asked for, with what that wants of the world as JSON text; returns the action's id.

        Raises TypeError for one that is no data.
        """
        kind, payload = type(action).__name__, action.payload()
        return self.add_outcome(event, handler, kind, payload, state, outcome, effect)

    def add_outcome(
        self,
        event: int,
        handler: str,
        kind: str,
        payload: str,
        state: str,
        outcome: str,
        effect: str | None = None,
    ) -> int:
        """Record what became of an event at a handler; returns its id."""
        self._last_action += 1
        row = (self._last_action, event, handler, kind, payload, state, storable(outcome), effect)
        self._actions.append(row)
        return self._last_action

    def flush(self) -> None:
        """Write what is buffered into the open transaction."""
        if self._events:
            self._db.executemany(self._sql["insert_event"], self._events)
            self._events.clear()
        if self._actions:
            self._db.executemany(self._sql["insert_action"], self._actions)
            self._actions.clear()

    def run(self, name: str, params: Mapping[str, Any] | tuple[Any, ...] = ()) -> int:
        """Execute a statement by name; returns the id of an inserted row, else the number of changed rows."""
        cursor = self._db.execute(self._sql[name], _bound(params))
        return int(cursor.lastrowid or 0) if name.startswith("insert_") else cursor.rowcount

    # -- what others keep here -------------------------------------------------------------------------------------

    def extend(self, name: str, migrations: Sequence[str] = (), sql: str = "") -> None:
        """Let a feature keep tables of its own here: `migrations` make them, one after the other, each once; `sql` are its statements by name.

        All names of tables and statements begin with `name` and `_`; what a migration or a statement does to other tables is refused. In a
        ledger that is only read nothing is made. Raises PluginError for what does not fit, and LedgerError where a newer version of the
        feature has been here.
        """
        found = extension.statements_of(name, sql)
        done = int(self.meta(extension.META + name) or 0)
        if done > len(migrations):
            raise LedgerError(
                f"{self.path}: its tables of `{name}` are of a newer version ({done} steps, this one knows {len(migrations)}); upgrade it"
            )
        if not self._is_read_only and (done < len(migrations) or not migrations):
            with self.transaction():
                extension.migrate(self._db, name, done, migrations)
                self.run("set_meta", {"key": extension.META + name, "value": str(len(migrations))})
        if not self._is_read_only or done:
            extension.check(self._db, name, found)
        if taken := found.keys() & self._sql.keys():
            raise PluginError(f"{name}: there is a statement {sorted(taken)[0]} already")
        self._sql |= found
        self._extended.add(name)

    def left_by(self) -> list[str]:
        """Features that have tables here and were not named by `extend`: they are not installed any more, and their tables stay."""
        known = {str(row["key"]).removeprefix(extension.META) for row in self.all("extensions")}
        return sorted(known - self._extended)

    # -- reading ---------------------------------------------------------------------------------------------------

    def all(self, name: str, params: Mapping[str, Any] | tuple[Any, ...] = ()) -> list[Row]:
        """All rows of a query by name."""
        return self._db.execute(self._sql[name], _bound(params)).fetchall()

    def each(self, name: str, params: Mapping[str, Any] | tuple[Any, ...] = ()) -> Iterator[Row]:
        """Rows of a query by name, one at a time."""
        return iter(self._db.execute(self._sql[name], _bound(params)))

    def one(self, name: str, params: Mapping[str, Any] | tuple[Any, ...] = ()) -> Row | None:
        """The first row of a query by name."""
        row: Row | None = self._db.execute(self._sql[name], _bound(params)).fetchone()
        return row

    @property
    def last_event(self) -> int:
        """The newest event's id."""
        return self._last_event

    def begin_after(self, dispatch: int, run: int) -> None:
        """Give no dispatch and no run an id up to these: folders and answers of an earlier ledger have them."""
        with self.transaction():
            for name, number in (("dispatches", dispatch), ("runs", run)):
                self.run("insert_sequence", {"name": name, "number": number})
            self.run("set_meta", {"key": "begun", "value": "1"})

    def meta(self, key: str) -> str | None:
        """A fact about the ledger itself."""
        row = self.one("get_meta", {"key": key})
        return None if row is None else str(row[0])

    # -- keeping it small ------------------------------------------------------------------------------------------

    def prune(self, before: float, keep_events: int) -> int:
        """Drop events older than `before` and those beyond the newest `keep_events`; returns how many.

        Never a dispatch, nor an event that led to one, nor what is still to be done. In slices of its own
        transactions, so that nothing else waits for long.
        """
        oldest = self.one("old_events", {"time": before})
        high = max(int(oldest[0] or 0) if oldest else 0, self._last_event - keep_events)
        low = int(self.meta("pruned_to") or 0)
        if high <= low:
            return 0
        self._db.execute("CREATE TEMP TABLE IF NOT EXISTS protected (id INTEGER PRIMARY KEY)")
        dropped = 0
        with self.transaction():
            self._db.execute("DELETE FROM temp.protected")
            self._db.execute("INSERT OR IGNORE INTO temp.protected " + self._sql["protected_events"])
        while low < high:
            part = {"low": low, "high": min(low + PRUNE_SLICE, high)}
            with self.transaction():
                self.run("prune_actions", part)
                dropped += self.run("prune_events", part)
                self.run("set_meta", {"key": "pruned_to", "value": str(part["high"])})
            low = part["high"]
        with self.transaction():
            self.run("prune_requests", {"high": high})
        return dropped


def event_of(row: Row) -> Event:
    """An event as it was recorded."""
    return Event(
        row["id"],
        row["time"],
        row["kind"],
        row["source"],
        row["path"],
        row["ref"],
        row["run"],
        row["cause"],
        json.loads(row["detail"]),
    )


#: Lone surrogates (bytes of a file name that are not UTF-8, or half a pair in somebody's JSON) have no place in SQLite's
#: text. They are kept as the last private characters of Unicode; such characters themselves with a mark before them.
_FIRST = "\U0010f7ff"
_AWAY: dict[int, int | str] = {
    **{code: 0x10F800 + code - 0xD800 for code in range(0xD800, 0xE000)},
    **{code: _FIRST + chr(code) for code in range(ord(_FIRST), sys.maxunicode + 1)},
}
_KEPT = re.compile(f"{_FIRST}([{_FIRST}-\U0010ffff])|[\U0010f800-\U0010ffff]")


def storable(value: object) -> object:
    """`value` as SQLite can hold it: text with lone surrogates changed reversibly, all else as it is."""
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.translate(_AWAY)
    return value if max(value) < _FIRST else value.translate(_AWAY)


def _text(data: bytes) -> str:
    """Text as it was before `storable`."""
    text = data.decode("utf-8", "replace")
    return text if text.isascii() or max(text) < _FIRST else _KEPT.sub(_as_it_was, text)


def _as_it_was(kept: re.Match[str]) -> str:
    return kept[1] or chr(ord(kept[0]) - 0x10F800 + 0xD800)


def _bound(params: Mapping[str, Any] | tuple[Any, ...]) -> Any:  # noqa: ANN401 - what sqlite3 binds
    if isinstance(params, tuple):
        return params
    return {name: storable(value) for name, value in params.items()}


def _is_busy(exc: Exception) -> bool:
    return (
        isinstance(exc, sqlite3.Error) and getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    )


def _own(path: Path) -> None:
    """Make a file of its own of a ledger that has other names: in a copy with hard links (`cp -al`) two engines would write one."""
    half = path.with_name(path.name + ".own")
    half.unlink(missing_ok=True)
    with closing(_connect(path, "rw")) as source, closing(sqlite3.connect(half)) as target:
        source.backup(target)
    os.chmod(half, 0o600)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.replace(half, path)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    wal = path.with_name(path.name + "-wal")
    if mode == "ro" and not os.access(path.parent, os.W_OK) and not (wal.exists() and wal.stat().st_size):
        mode = "ro&immutable=1"  # SQLite could not make the files beside it that readers share
    db = sqlite3.connect(
        f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    db.row_factory = sqlite3.Row
    db.text_factory = _text
    return db


def _inspect(path: Path, *, quick: bool = False) -> int:
    """The ledger's version, found without changing the file. Raises LedgerError where it cannot be used."""
    newest = len(migrations())
    try:
        with path.open("rb") as file:
            header = file.read(16)
        if header and header != b"SQLite format 3\0":
            raise LedgerError(
                f"{path}: not a ledger (it does not begin as an SQLite file); move it away, then `aipass up` makes a new one"
            )
        db = _connect(path, "ro")
        try:
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            application = int(db.execute("PRAGMA application_id").fetchone()[0])
            if version == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
                return 0  # an empty file, or one whose first transaction never came to its end
            if version > newest:
                raise LedgerError(
                    f"{path}: written by a newer aipass (ledger version {version}, this one knows {newest}); upgrade aipass"
                )
            if version < 1 or application != APPLICATION_ID:
                raise LedgerError(
                    f"{path}: an SQLite file of another program; move it away, then `aipass up` makes a new one"
                )
            if not quick:
                problem = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
                if problem != "ok":
                    raise LedgerError(f"{path}: damaged ({problem}); {_RESCUE}")
        finally:
            db.close()
    except sqlite3.OperationalError as exc:
        raise LedgerError(f"{path}: cannot be opened ({exc}); check the permissions of its folder") from exc
    except sqlite3.DatabaseError as exc:
        raise LedgerError(f"{path}: damaged ({exc}); {_RESCUE}") from exc
    except OSError as exc:
        raise LedgerError(f"{path}: cannot be read ({exc.strerror}); check its permissions") from exc
    return version


_RESCUE = "keep a copy, try `sqlite3 ledger.db .recover`, or move it away to begin anew; the files in .aipass/runs stay as they are"


def _migrate(db: sqlite3.Connection, version: int) -> None:
    """Bring the schema to the newest version, in one transaction."""
    scripts = migrations()
    if version == len(scripts):
        return
    steps = [schema()] if version == 0 else scripts[version:]
    script = "\n".join(steps)
    db.executescript(
        f"BEGIN IMMEDIATE;\n{script}\nPRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {len(scripts)};\nCOMMIT;"
    )

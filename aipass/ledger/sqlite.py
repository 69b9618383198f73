"""The ledger: one SQLite file in WAL mode, written by one engine and read by any number of processes."""

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

#: "aips" in the file's header: distinguishes a ledger from any other SQLite file.
APPLICATION_ID = 0x61697073
# A reader (status, a long `events`) can delay a checkpoint, never a commit. So only a second writer makes a commit wait, or a process that
# locks the file on purpose; after this time the engine searches for that process.
BUSY_TIMEOUT_S = 2.0
# SQLite copies the WAL into the file at this many pages (4 MB); a larger WAL is faster under load and slower to open after a crash.
CHECKPOINT_PAGES = 1000
# Events per transaction of `prune`: nothing else must wait long for the write lock.
PRUNE_SLICE = 5000
# A first start creates the file a moment before its tables: a reader looks again this many times.
MAKING_LOOKS, MAKING_PAUSE_S = 50, 0.02


class Ledger:
    """An open ledger. It assigns the ids of events and actions itself, and buffers both until `flush`."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._db = connection
        self.path = path
        self._sql = dict(statements())
        self._extended: set[str] = set()
        self._is_read_only = bool(connection.execute("PRAGMA query_only").fetchone()[0])
        # Buffered, so that a batch needs one statement for all its events and one for all its actions.
        self._events: list[tuple[Any, ...]] = []
        self._actions: list[tuple[Any, ...]] = []
        row = connection.execute(self._sql["last_ids"]).fetchone()
        self._last_event, self._last_action = int(row[0]), int(row[1])

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open the ledger for writing; create it where there is none, and migrate an older one.

        Raises LedgerError for a file that is damaged, from a newer aipass, or not a ledger, and leaves such a file unchanged.
        """
        version = _inspect(path) if path.exists() and path.stat().st_size else 0
        try:
            if version and path.stat().st_nlink > 1:
                _own(path)
            db = _connect(path, "rwc")
            db.execute("PRAGMA journal_mode = WAL")
            # FULL: a commit must survive a power failure, because effects follow it immediately.
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            _migrate(db, version)
            # Prompts and answers are private: other users of this machine must not read them.
            os.chmod(path, 0o600)
            return cls(db, str(path))
        except (sqlite3.Error, OSError) as exc:
            refused = LedgerError(
                f"{path}: cannot be opened ({exc}); check the free space and the permissions of its folder"
            )
            refused.locked = _is_busy(exc)
            raise refused from exc

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Open the ledger for reading only. Creates nothing and migrates nothing.

        Raises LedgerError as `open` does, and where there is no ledger yet.
        """
        if not path.exists():
            raise LedgerError(f"{path}: there is no ledger yet; create it with `aipass up`")
        for _ in range(MAKING_LOOKS):
            # Quick: a full check reads the whole file, too slow for every `aipass status`.
            if _inspect(path, quick=True):
                break
            time.sleep(MAKING_PAUSE_S)
        else:
            raise LedgerError(f"{path}: is empty; `aipass up` creates a new one in its place")
        try:
            db = _connect(path, "ro")
            # Besides `mode=ro`: a statement that writes must fail here, also in a feature.
            db.execute("PRAGMA query_only = 1")
            return cls(db, str(path))
        except sqlite3.Error as exc:
            raise LedgerError(f"{path}: cannot be read ({exc})") from exc

    @classmethod
    def snapshot(cls, path: Path) -> Ledger:
        """Open the ledger as `read` does; all that is read until `close` is of one moment.

        For verbs that combine several statements: the engine may commit between two of them. Not for a loop that waits.
        """
        ledger = cls.read(path)
        # SQLite takes the snapshot with the first statement. Writers go on; only the truncation of the WAL file waits.
        ledger._begin_snapshot()  # noqa: SLF001 - of this class
        return ledger

    def _begin_snapshot(self) -> None:
        self._db.execute("BEGIN")
        self._db.execute(self._sql["last_ids"]).fetchone()

    @classmethod
    def in_memory(cls) -> Ledger:
        """Return a ledger without a file, for tests and rehearsals of plans."""
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        db.row_factory = sqlite3.Row
        db.text_factory = _text
        _migrate(db, 0)
        return cls(db, ":memory:")

    def files(self) -> tuple[Path, ...]:
        """Return the files that SQLite locks, whether they exist or not."""
        return tuple(Path(self.path + suffix) for suffix in ("", "-wal", "-shm"))

    def close(self) -> None:
        """Close the file. An open transaction is rolled back."""
        self._db.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in one transaction (atomic); it flushes the buffers before the commit and rolls back on any exception.

        Raises LedgerError where SQLite cannot write; its `locked` says whether another process has a lock.
        """
        last = self._last_event, self._last_action
        try:
            # IMMEDIATE takes the write lock now: a lock taken in the middle could fail after half of the work.
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
                    f"{self.path}: cannot be written ({exc}); check the free space and the disk"
                )
                refused.locked = _is_busy(exc)
                raise refused from exc
            raise

    @contextmanager
    def part(self) -> Iterator[None]:
        """Run the block atomically within a transaction (savepoint): an exception undoes only the block. Does nothing outside a transaction."""
        if not self._db.in_transaction:
            yield
            return
        events, actions = self._events.copy(), self._actions.copy()
        last = self._last_event, self._last_action
        self._db.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            # SQLite may have rolled back the whole transaction itself, for example on a full disk.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK TO part")
                self._db.execute("RELEASE part")
            # Restored as well: rows from before the block that it flushed are rolled back with it.
            self._events, self._actions = events, actions
            self._last_event, self._last_action = last
            raise
        self._db.execute("RELEASE part")

    def record(self, fact: Fact, now: Instant) -> Event:
        """Return a fact as an event with its id and time, and buffer it for the open transaction."""
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
        """Buffer an action of a handler and return its id. `effect`: its side effect as JSON text.

        Raises TypeError for an action with fields that JSON cannot express.
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
        """Buffer the outcome of an event at a handler and return its id; the ids are shared with actions."""
        self._last_action += 1
        row = (self._last_action, event, handler, kind, payload, state, storable(outcome), effect)
        self._actions.append(row)
        return self._last_action

    def flush(self) -> None:
        """Write the buffered events and actions into the open transaction; needed before a query that must see them."""
        if self._events:
            self._db.executemany(self._sql["insert_event"], self._events)
            self._events.clear()
        if self._actions:
            self._db.executemany(self._sql["insert_action"], self._actions)
            self._actions.clear()

    def run(self, name: str, params: Mapping[str, Any] | tuple[Any, ...] = ()) -> int:
        """Execute a statement by name. Returns the id of the inserted row for a name with `insert_`, else the number of changed rows."""
        cursor = self._db.execute(self._sql[name], _bound(params))
        return int(cursor.lastrowid or 0) if name.startswith("insert_") else cursor.rowcount

    # -- tables of features -------------------------------------------------------------------------------------

    def extend(self, name: str, migrations: Sequence[str] = (), sql: str = "") -> None:
        """Give a feature its own tables: run each of its `migrations` once, in order, and add the statements in `sql` by name.

        All names of tables and statements must begin with `name` and `_`. Each migration and statement may only write to these tables. A
        ledger that is open for reading runs no migration. Raises PluginError for anything else, and LedgerError where a newer version of
        the feature has run more migrations.
        """
        found = extension.statements_of(name, sql)
        done = int(self.meta(extension.META + name) or 0)
        if done > len(migrations):
            raise LedgerError(
                f"{self.path}: a newer version of `{name}` has changed its tables ({done} migrations, this one knows {len(migrations)}); upgrade `{name}`"
            )
        if not self._is_read_only and (done < len(migrations) or not migrations):
            with self.transaction():
                extension.migrate(self._db, name, done, migrations)
                self.run("set_meta", {"key": extension.META + name, "value": str(len(migrations))})
        # A reader may come before the engine has made the tables; then there is nothing to check against.
        if not self._is_read_only or done:
            extension.check(self._db, name, found)
        if taken := found.keys() & self._sql.keys():
            raise PluginError(f"{name}: the statement `{sorted(taken)[0]}` exists already; rename it")
        self._sql |= found
        self._extended.add(name)

    def left_by(self) -> list[str]:
        """Return the features with tables here that did not call `extend`: they are not installed any more; their tables stay."""
        known = {str(row["key"]).removeprefix(extension.META) for row in self.all("extensions")}
        return sorted(known - self._extended)

    # -- reading ---------------------------------------------------------------------------------------------------

    def all(self, name: str, params: Mapping[str, Any] | tuple[Any, ...] = ()) -> list[Row]:
        """Return all rows of a query by name."""
        return self._db.execute(self._sql[name], _bound(params)).fetchall()

    def each(self, name: str, params: Mapping[str, Any] | tuple[Any, ...] = ()) -> Iterator[Row]:
        """Yield the rows of a query by name one at a time, without reading all into memory."""
        return iter(self._db.execute(self._sql[name], _bound(params)))

    def one(self, name: str, params: Mapping[str, Any] | tuple[Any, ...] = ()) -> Row | None:
        """Return the first row of a query by name; None where it has no rows."""
        row: Row | None = self._db.execute(self._sql[name], _bound(params)).fetchone()
        return row

    @property
    def last_event(self) -> int:
        """The id of the newest event, also of one that is only buffered."""
        return self._last_event

    def begin_after(self, dispatch: int, run: int) -> None:
        """Start the ids of dispatches and runs after these numbers: folders and answers of an earlier ledger have the lower ones."""
        with self.transaction():
            for name, number in (("dispatches", dispatch), ("runs", run)):
                self.run("insert_sequence", {"name": name, "number": number})
            self.run("set_meta", {"key": "begun", "value": "1"})

    def meta(self, key: str) -> str | None:
        """Return the value of a key in the `meta` table; None where it is not set."""
        row = self.one("get_meta", {"key": key})
        return None if row is None else str(row[0])

    # -- keeping it small ------------------------------------------------------------------------------------------

    def prune(self, before: float, keep_events: int) -> int:
        """Delete events older than `before` (seconds since the epoch) and all but the newest `keep_events`; returns how many.

        Keeps dispatches, the events in their chains of causes, and pending actions. Uses several short transactions, so it must not be
        called inside one; an interrupted call continues with the next.
        """
        oldest = self.one("old_events", {"time": before})
        high = max(int(oldest[0] or 0) if oldest else 0, self._last_event - keep_events)
        low = int(self.meta("pruned_to") or 0)
        if high <= low:
            return 0
        self._db.execute("CREATE TEMP TABLE IF NOT EXISTS protected (id INTEGER PRIMARY KEY)")
        dropped = 0
        # Once for all slices: the recursive query over all causes is the expensive part.
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
    """Return the event of a row of the `events` table."""
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


#: SQLite's text cannot contain lone surrogates (bytes of a file name that are not UTF-8, or half a pair in JSON from outside). They are
#: stored as the last private characters of Unicode; such characters themselves get a mark before them.
_FIRST = "\U0010f7ff"
_AWAY: dict[int, int | str] = {
    **{code: 0x10F800 + code - 0xD800 for code in range(0xD800, 0xE000)},
    **{code: _FIRST + chr(code) for code in range(ord(_FIRST), sys.maxunicode + 1)},
}
_KEPT = re.compile(f"{_FIRST}([{_FIRST}-\U0010ffff])|[\U0010f800-\U0010ffff]")


def storable(value: object) -> object:
    """Return `value` in a form that SQLite can store: lone surrogates in text are replaced reversibly; other values stay unchanged."""
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.translate(_AWAY)
    return value if max(value) < _FIRST else value.translate(_AWAY)


def _text(data: bytes) -> str:
    """The reverse of `storable`, for each text that SQLite returns."""
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
    """Replace a ledger that has several names (hard links) by a copy of its own."""
    # After `cp -al` both roots have the same file, and two engines would write to it.
    half = path.with_name(path.name + ".own")
    half.unlink(missing_ok=True)
    with closing(_connect(path, "rw")) as source, closing(sqlite3.connect(half)) as target:
        source.backup(target)
    os.chmod(half, 0o600)
    # The backup contains the WAL's pages already; an old WAL beside the new file would damage it.
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.replace(half, path)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    wal = path.with_name(path.name + "-wal")
    if mode == "ro" and not os.access(path.parent, os.W_OK) and not (wal.exists() and wal.stat().st_size):
        mode = "ro&immutable=1"  # in a folder without write permission SQLite cannot create the `-shm` file that readers share
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
    """The version of the ledger at `path`, 0 for an empty file; never changes the file. Raises LedgerError where it cannot be used."""
    newest = len(migrations())
    try:
        with path.open("rb") as file:
            # Checked first: SQLite reports any other file as a damaged database, and the remedy would be the wrong one.
            header = file.read(16)
        if header and header != b"SQLite format 3\0":
            raise LedgerError(
                f"{path}: not a ledger (it is not an SQLite file); move it away, then `aipass up` creates a new one"
            )
        db = _connect(path, "ro")
        try:
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            application = int(db.execute("PRAGMA application_id").fetchone()[0])
            if version == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
                return 0  # an empty file, or one whose first transaction never ended
            if version > newest:
                raise LedgerError(
                    f"{path}: written by a newer aipass (ledger version {version}, this one knows {newest}); upgrade aipass"
                )
            if version < 1 or application != APPLICATION_ID:
                raise LedgerError(
                    f"{path}: an SQLite file of another program; move it away, then `aipass up` creates a new one"
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


_RESCUE = "keep a copy, try `sqlite3 ledger.db .recover`, or move it away to start with a new one; the files in .aipass/runs stay unchanged"


def _migrate(db: sqlite3.Connection, version: int) -> None:
    """Migrate the schema from `version` to the newest one, in one transaction (atomic)."""
    scripts = migrations()
    if version == len(scripts):
        return
    steps = [schema()] if version == 0 else scripts[version:]
    script = "\n".join(steps)
    db.executescript(
        f"BEGIN IMMEDIATE;\n{script}\nPRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {len(scripts)};\nCOMMIT;"
    )

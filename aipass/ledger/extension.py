"""The checks for tables that features and plugins keep in the ledger: each may only touch tables that begin with its name."""

from __future__ import annotations

import re
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aipass.errors import PluginError
from aipass.ledger.statements import parse, schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Prefix of keys in the ledger's `meta` table: `extension.NAME` is the number of migrations that this feature has run.
META = "extension."
NAME = re.compile(r"[a-z][a-z0-9]{1,30}")
#: SQLite's own tables, which it writes itself when a table is created or dropped.
_SQLITES = frozenset(("sqlite_master", "sqlite_schema", "sqlite_sequence", "sqlite_temp_master"))
#: The authorizer does not see a conflict clause, and `OR ROLLBACK` would end the engine's transaction in the middle.
_ROLLBACK = re.compile(r"\b(?:OR|ON\s+CONFLICT)\s+ROLLBACK\b|\bRAISE\s*\(\s*ROLLBACK\b", re.IGNORECASE)
_READS = frozenset(
    (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
)
_WRITES = frozenset((sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE))
_MAKES = frozenset((sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_DROP_TABLE))
_INDEXES = frozenset((sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_DROP_INDEX, sqlite3.SQLITE_ALTER_TABLE))


def statements_of(name: str, sql: str) -> dict[str, str]:
    """Return a feature's statements by name. Raises PluginError for bad SQL text, or a name that is not the feature's own."""
    if not NAME.fullmatch(name):
        raise PluginError(
            f"`{name}` is not a valid feature name; use 2 to 31 small letters and digits, beginning with a letter"
        )
    if any(_is_own(name, table) for table in re.findall(r"CREATE TABLE (\w+)", schema())):
        raise PluginError(f"the ledger's own tables begin with `{name}`; choose another feature name")
    try:
        found = parse(sql)
    except ValueError as exc:
        raise PluginError(f"{name}: {exc}") from None
    for statement, text in found.items():
        _check_text(f"{name}: the statement {statement}", text)
        if not _is_own(name, statement.removeprefix("insert_")):
            raise PluginError(
                f"{name}: the statement `{statement}` must be named `{name}_…`, or `insert_{name}…`"
            )
    return found


def migrate(db: sqlite3.Connection, name: str, done: int, scripts: Sequence[str]) -> None:
    """Run a feature's migrations after the first `done`, in the open transaction. Raises PluginError for a script that touches other tables."""
    before = _tables(db)
    for number, script in enumerate(scripts[done:], done + 1):
        for statement in _split(script):
            _check_text(f"{name}: migration {number}", statement)
            is_of_tables = statement.lstrip().upper().startswith(("CREATE", "DROP", "ALTER"))
            try:
                with _only_own(db, name, of_tables=is_of_tables):
                    db.execute(statement)
            except (sqlite3.DatabaseError, sqlite3.Warning) as exc:
                raise PluginError(_words(f"{name}: migration {number}", name, exc)) from exc
    # The authorizer does not see the new name of `ALTER TABLE … RENAME TO`.
    if strange := [table for table in _tables(db) ^ before if not _is_own(name, table)]:
        raise PluginError(
            f"{name}: a migration touches more than tables and indexes named `{name}_…`: {strange[0]}"
        )


def check(db: sqlite3.Connection, name: str, statements: dict[str, str]) -> None:
    """Raise PluginError for a statement with an SQL error, or one that writes to tables of others. Runs none of them."""
    with _only_own(db, name):
        for statement, text in statements.items():
            try:
                db.execute(f"EXPLAIN {text}").close()
            except sqlite3.ProgrammingError as exc:
                if "one statement" in str(exc):
                    raise PluginError(
                        f"{name}: the statement `{statement}` is more than one; give each its own `-- name:`"
                    ) from exc
                # The missing parameters are the only error, so the statement is valid.
            except (sqlite3.DatabaseError, sqlite3.Warning) as exc:
                raise PluginError(_words(f"{name}: the statement {statement}", name, exc)) from exc


def _check_text(what: str, text: str) -> None:
    if _ROLLBACK.search(text):
        raise PluginError(f"{what} would end the engine's transaction; write `OR ABORT`")


def _tables(db: sqlite3.Connection) -> set[str]:
    return {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} - _SQLITES


def _words(what: str, name: str, exc: Exception) -> str:
    if "not authorized" in str(exc) or "prohibited" in str(exc):
        return f"{what} touches more than tables and indexes named `{name}_…`"
    return f"{what}: {exc}"


@contextmanager
def _only_own(db: sqlite3.Connection, name: str, *, of_tables: bool = False) -> Iterator[None]:
    def may(action: int, first: str | None, second: str | None, *_: object) -> int:
        if action in _READS:
            # Reading is free, but `load_extension` would load a library into the engine.
            is_fine = not (action == sqlite3.SQLITE_FUNCTION and second == "load_extension")
        elif action in _WRITES:
            is_fine = (of_tables and first in _SQLITES) or _is_own(name, first)
        elif action in _MAKES:
            is_fine = _is_own(name, first) or (of_tables and first == "sqlite_sequence")
        elif action in _INDEXES:
            is_fine = _is_own(name, second)
        else:
            is_fine = action == sqlite3.SQLITE_REINDEX
        return sqlite3.SQLITE_OK if is_fine else sqlite3.SQLITE_DENY

    # SQLite asks this for each access when it compiles a statement, so text that hides a table name changes nothing.
    db.set_authorizer(may)
    try:
        yield
    finally:
        db.set_authorizer(None)


def _is_own(name: str, table: str | None) -> bool:
    return table is not None and (table == name or table.startswith(f"{name}_"))


def _split(script: str) -> Iterator[str]:
    """The statements of a script, one by one."""
    begun = ""
    for line in script.splitlines(keepends=True):
        begun += line
        if sqlite3.complete_statement(begun):
            yield begun
            begun = ""
    if begun.strip():
        yield begun

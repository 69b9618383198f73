"""The exceptions of aipass, each named by the person who must act, with its exit code."""

from __future__ import annotations

# Exit codes are promises to scripts; docs/exit-codes.md describes each.
EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_NO_ENGINE = 4
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class AipassError(Exception):
    """Base of all errors that a user sees. The message says what happened, where, and what to do."""

    exit_code = EXIT_FAILED


class ConfigError(AipassError):
    """aipass.toml, an argument or the state of the repository is invalid; its author must correct it."""

    exit_code = EXIT_USAGE


class PluginError(AipassError):
    """A plugin does not fit its hook; the author of the plugin must act. The message shows the plugin's own signature."""

    exit_code = EXIT_USAGE


class RefusedError(AipassError):
    """A rule forbids the request: ownership, git lease, role, limit, or an engine that already runs."""

    exit_code = EXIT_REFUSED


class NoEngineError(AipassError):
    """The request needs a running engine; start one with `aipass up`."""

    exit_code = EXIT_NO_ENGINE


class LedgerError(AipassError):
    """The ledger (SQLite event log) cannot be used as it is. aipass does not change it in that case.

    `locked`: another process holds a lock on it. The file itself is intact, and a later attempt can succeed.
    """

    exit_code = EXIT_FAILED
    locked = False

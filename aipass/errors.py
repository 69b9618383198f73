"""What can go wrong, named by who must act; each knows its exit code."""

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
    """The thing asked for failed. The message says what happened, where, and what to do."""

    exit_code = EXIT_FAILED


class ConfigError(AipassError):
    """aipass.toml, an argument or the repository is not as it must be; whoever wrote it must act."""

    exit_code = EXIT_USAGE


class PluginError(AipassError):
    """A plugin does not fit its hook; its author must act. The message shows the plugin's own signature."""

    exit_code = EXIT_USAGE


class RefusedError(AipassError):
    """A rule forbids it: ownership, lease, role, limit, or an engine that runs already."""

    exit_code = EXIT_REFUSED


class NoEngineError(AipassError):
    """An engine must run for this; start one with `aipass up`."""

    exit_code = EXIT_NO_ENGINE


class LedgerError(AipassError):
    """The ledger cannot be used as it is. It is never changed by us in that case.

    `locked`: somebody else has a lock on it, and nothing is wrong with it.
    """

    exit_code = EXIT_FAILED
    locked = False

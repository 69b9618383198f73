"""The log for people: rotated JSON lines in `.aipass/log.jsonl`, and readable text on a terminal."""

from __future__ import annotations

import logging
import sys
from datetime import datetime
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING, Any

import structlog

from aipass.event import inert, plain

if TYPE_CHECKING:
    from pathlib import Path

MAX_LOG_BYTES = 5_000_000
KEPT_LOGS = 3


def set_up(path: Path, *, show: bool) -> None:
    """Log to `path`, and with `show` to stderr as well. Replaces the handlers of an earlier call."""
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # "backslashreplace": a path with bytes that are not UTF-8 must not make the logging fail.
    file = _ForgivingHandler(
        path, maxBytes=MAX_LOG_BYTES, backupCount=KEPT_LOGS, encoding="utf-8", errors="backslashreplace"
    )
    file.setFormatter(_formatter(structlog.processors.JSONRenderer(), shared))
    handlers: list[logging.Handler] = [file]
    if show:
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setFormatter(
            _formatter(
                structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=20),
                shared,
                _by_the_clock,
                _for_eyes,
            )
        )
        handlers.append(terminal)
    root = logging.getLogger("aipass")
    root.handlers[:] = handlers
    root.setLevel(logging.INFO)
    root.propagate = False
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


class _ForgivingHandler(RotatingFileHandler):
    """A rotating log file that drops records which cannot be written. The ledger has all facts that matter."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Ignore the error."""
        # A full disk must not end the engine. The default prints a traceback to stderr for every record.
        del record


def _by_the_clock(_: object, __: str, event: Any) -> Any:  # noqa: ANN401 - structlog's
    """A structlog processor for the terminal: local time of day instead of UTC."""
    event["timestamp"] = datetime.fromisoformat(event["timestamp"]).astimezone().strftime("%H:%M:%S")
    return event


def _for_eyes(_: object, __: str, event: Any) -> Any:  # noqa: ANN401 - structlog's
    """A structlog processor for the terminal: escapes control characters."""
    # Names of files and texts of agents are logged; an escape sequence in one could control the terminal of a person.
    return {
        name: value if not isinstance(value, str) else inert(value) if name == "exception" else plain(value)
        for name, value in event.items()
    }


def _formatter(renderer: Any, shared: list[Any], *before: Any) -> logging.Formatter:  # noqa: ANN401 - structlog processors
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *before, renderer],
    )

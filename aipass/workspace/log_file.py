"""Logs for people: JSON lines in `.aipass/log.jsonl`, rotated, and readable text on a terminal."""

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
    """Log to `path`, and to stderr where `show`."""
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
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
    """A full disk must not end the engine: what cannot be logged is left out; the ledger has what matters."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Say nothing: there is nowhere to say it."""
        del record


def _by_the_clock(_: object, __: str, event: Any) -> Any:  # noqa: ANN401 - structlog's
    """For eyes: the time of day here; the file keeps UTC."""
    event["timestamp"] = datetime.fromisoformat(event["timestamp"]).astimezone().strftime("%H:%M:%S")
    return event


def _for_eyes(_: object, __: str, event: Any) -> Any:  # noqa: ANN401 - structlog's
    """An agent names files, and says what others are to be told: nothing of it speaks to the terminal."""
    return {
        name: value if not isinstance(value, str) else inert(value) if name == "exception" else plain(value)
        for name, value in event.items()
    }


def _formatter(renderer: Any, shared: list[Any], *before: Any) -> logging.Formatter:  # noqa: ANN401 - structlog processors
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *before, renderer],
    )

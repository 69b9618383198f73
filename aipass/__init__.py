"""aipass: an event-driven watchdog engine for teams of command-line coding agents.

What plugin authors need is importable from here. Names load on first use, so that a command line verb, or the
supervisor, pays only for what it uses.
"""

from __future__ import annotations

from aipass import isolation

if isolation.is_program():
    isolation.leave_out_the_tree()

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aipass.action import (
        Action,
        Advance,
        Answer,
        Ask,
        Cancel,
        Check,
        ClosePr,
        Deliver,
        Dispatch,
        FinishTodo,
        Forget,
        Ignore,
        MarkRead,
        MergePr,
        Message,
        Note,
        Notify,
        OpenPr,
        Pause,
        Refuse,
        Reject,
        Reload,
        Reply,
        Resume,
        Retry,
        Steer,
        Wake,
        Written,
    )
    from aipass.dispatch.driver import Command, Job, Outcome, Share, Usage
    from aipass.errors import AipassError, ConfigError, LedgerError, PluginError
    from aipass.event import Event, Fact
    from aipass.hookspecs import hookimpl
    from aipass.notices import Notice
    from aipass.router import Handler, View

__version__ = "0.1.0"
#: What pip knows us by; `aipass` is another project's name there.
DISTRIBUTION = "aipass-engine"

_HOME = {
    "aipass.action": (
        "Action", "Advance", "Answer", "Ask", "Cancel", "Check", "ClosePr", "Deliver", "Dispatch", "FinishTodo", "Forget", "Ignore", "MarkRead", "MergePr", "Message", "Note", "Notify", "OpenPr", "Pause", "Refuse", "Reject", "Reload", "Reply", "Resume", "Retry", "Steer", "Wake", "Written",
    ),
    "aipass.dispatch.driver": ("Command", "Job", "Outcome", "Share", "Usage"),
    "aipass.errors": ("AipassError", "ConfigError", "LedgerError", "PluginError"),
    "aipass.event": ("Event", "Fact"),
    "aipass.hookspecs": ("hookimpl",),
    "aipass.notices": ("Notice",),
    "aipass.router": ("Handler", "View"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Action",
    "Advance",
    "AipassError",
    "Answer",
    "Ask",
    "Cancel",
    "Check",
    "ClosePr",
    "Command",
    "ConfigError",
    "Deliver",
    "Dispatch",
    "Event",
    "Fact",
    "FinishTodo",
    "Forget",
    "Handler",
    "Ignore",
    "Job",
    "LedgerError",
    "MarkRead",
    "MergePr",
    "Message",
    "Note",
    "Notice",
    "Notify",
    "OpenPr",
    "Outcome",
    "Pause",
    "PluginError",
    "Refuse",
    "Reject",
    "Reload",
    "Reply",
    "Resume",
    "Retry",
    "Share",
    "Steer",
    "Usage",
    "View",
    "Wake",
    "Written",
    "hookimpl",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'aipass' has no attribute {name!r}")
    return getattr(import_module(module), name)

"""aipass: an event-driven watchdog engine for teams of command-line coding agents.

The public API for plugin authors. Each name is imported on first use, so that a command line verb or the supervisor
pays only for the modules that it uses.
"""

from __future__ import annotations

from aipass import isolation

# Before every other import: a module of the standard library may import an optional one by name, and a file of that
# name which an agent wrote into the repository would then run with the person's rights.
if isolation.is_program():
    isolation.leave_out_the_tree()

from importlib import import_module
from typing import TYPE_CHECKING

# Type checkers do not run `__getattr__`, so each name is here as well.
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
    from aipass.core.notices import Notice
    from aipass.core.registry import Core
    from aipass.core.router import Handler, View
    from aipass.core.run_hook import RunEnd, RunHook
    from aipass.core.step import Again, Applied, Done, Effect, Pending, Step
    from aipass.core.verbs import Authority, Field, Request, Verb
    from aipass.errors import AipassError, ConfigError, LedgerError, PluginError
    from aipass.event import Event, Fact
    from aipass.features.dispatch.driver import Command, Job, Outcome, Share, Usage
    from aipass.hookspecs import hookimpl
    from aipass.terminal.asking import ask
    from aipass.workspace.layout import find_root

__version__ = "0.1.0"
#: Our name on PyPI; `aipass` is another project's name there.
DISTRIBUTION = "aipass-engine"

_HOME = {
    "aipass.action": (
        "Action", "Advance", "Answer", "Ask", "Cancel", "Check", "ClosePr", "Deliver", "Dispatch", "FinishTodo", "Forget", "Ignore", "MarkRead", "MergePr", "Message", "Note", "Notify", "OpenPr", "Pause", "Refuse", "Reject", "Reload", "Reply", "Resume", "Retry", "Steer", "Wake", "Written",
    ),
    "aipass.features.dispatch.driver": ("Command", "Job", "Outcome", "Share", "Usage"),
    "aipass.errors": ("AipassError", "ConfigError", "LedgerError", "PluginError"),
    "aipass.event": ("Event", "Fact"),
    "aipass.hookspecs": ("hookimpl",),
    "aipass.core.registry": ("Core",),
    "aipass.core.run_hook": ("RunEnd", "RunHook",),
    "aipass.core.step": ("Again", "Applied", "Done", "Effect", "Pending", "Step",),
    "aipass.core.verbs": ("Authority", "Field", "Request", "Verb"),
    "aipass.terminal.asking": ("ask",),
    "aipass.workspace.layout": ("find_root",),
    "aipass.core.notices": ("Notice",),
    "aipass.core.router": ("Handler", "View"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Action",
    "Advance",
    "Again",
    "AipassError",
    "Answer",
    "Applied",
    "Ask",
    "Authority",
    "Cancel",
    "Check",
    "ClosePr",
    "Command",
    "ConfigError",
    "Core",
    "Deliver",
    "Dispatch",
    "Done",
    "Effect",
    "Event",
    "Fact",
    "Field",
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
    "Pending",
    "PluginError",
    "Refuse",
    "Reject",
    "Reload",
    "Reply",
    "Request",
    "Resume",
    "Retry",
    "RunEnd",
    "RunHook",
    "Share",
    "Steer",
    "Step",
    "Usage",
    "Verb",
    "View",
    "Wake",
    "Written",
    "ask",
    "find_root",
    "hookimpl",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'aipass' has no attribute {name!r}")
    return getattr(import_module(module), name)

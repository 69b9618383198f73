"""The environment variables of a run: those of the shell that ran `aipass up`, filtered, plus the run's own. Pure."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from aipass.config.model import FromEnv
from aipass.errors import AipassError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aipass.config.model import Agent

#: Addresses of programs that run commands for any client, outside the fence (per-file sandbox): terminals, editors, agents
#: of keys, containers. Also the variables of another run. Never inherited, even if `[sandbox] env` names them.
DOORS = (
    "TMUX", "TMUX_PANE", "STY", "ZELLIJ*", "KITTY_LISTEN_ON", "WEZTERM_UNIX_SOCKET", "ALACRITTY_SOCKET", "NVIM", "NVIM_LISTEN_ADDRESS",
    "SSH_AUTH_SOCK", "GPG_AGENT_INFO", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST", "CONTAINER_HOST", "VSCODE_*", "AIPASS_*",
)  # fmt: skip
#: Variables that describe the program which ran `aipass up` and its work: the repository of a git hook, options of make,
#: names of a package script, the session of another agent, code that interpreters load at start. A run would act on that
#: work instead of its own. Not inherited unless `[sandbox] env` names one literally.
OF_THE_CALLER = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_INDEX_VERSION", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH",
    "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_EXEC_PATH", "GIT_REFLOG_ACTION", "GIT_EDITOR", "GIT_SEQUENCE_EDITOR", "GIT_PAGER_IN_USE", "GIT_INTERNAL_*", "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_*", "GIT_CONFIG_VALUE_*", "GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE", "GIT_SHALLOW_FILE", "GIT_GRAFT_FILE",
    "MAKEFLAGS", "MFLAGS", "GNUMAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MAKE_TERMOUT", "MAKE_TERMERR", "npm_lifecycle_*", "npm_package_*", "npm_execpath", "npm_node_execpath",
    "npm_command", "INIT_CWD", "CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_SSE_PORT", "CLAUDE_CODE_SESSION*", "CODEX_SANDBOX*", "CODEX_THREAD_ID", "GEMINI_CLI", "GEMINI_CLI_*",
    "OPENCODE", "OPENCODE_*", "QWEN_CODE", "CURSOR_AGENT", "CURSOR_TRACE_ID", "AI_AGENT", "NODE_OPTIONS", "NODE_CHANNEL_FD", "NODE_UNIQUE_ID", "PYTHONHOME", "PYTHONSTARTUP",
    "PYTHONINSPECT", "PYTHONEXECUTABLE", "PYTEST_*", "COV_CORE_*", "COVERAGE_PROCESS_START", "TOX_*", "PRE_COMMIT", "HUSKY_GIT_PARAMS", "BASH_ENV", "ENV", "PROMPT_COMMAND", "BASH_FUNC_*",
    "LD_PRELOAD", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "RUBYOPT", "PERL5OPT", "JAVA_TOOL_OPTIONS", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "OLDPWD",
    "SHLVL", "WINDOWID",
)  # fmt: skip
#: In a git hook, git sets these to the author of one commit. Elsewhere a person sets them, for all commits, and they stay.
_COMMITS_AUTHOR = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL")
#: The folder of the `aipass` command that belongs to this Python.
SCRIPTS = str(Path(sys.executable).parent)


def inherited(shell: Mapping[str, str], allowed: Iterable[str] | None) -> dict[str, str]:
    """The part of the shell's environment that every run inherits.

    `allowed`: names or patterns (`[sandbox] env`); None allows all names.
    """
    names = None if allowed is None else tuple(allowed)
    of_caller = OF_THE_CALLER + (
        _COMMITS_AUTHOR if {"GIT_INDEX_FILE", "GIT_AUTHOR_DATE"} & shell.keys() else ()
    )
    found = {}
    for name, value in shell.items():
        if _is_any(name, DOORS) or (names is not None and not _is_any(name, names)):
            continue
        # A literal name is a deliberate choice. A pattern such as `*` is not, and must not bring the caller's work back.
        if name in (names or ()) or not _is_any(name, of_caller):
            found[name] = value
    return found


def compose(
    base: Mapping[str, str],
    shell: Mapping[str, str],
    settings: Agent,
    driver: Mapping[str, str],
    own: Mapping[str, str],
) -> dict[str, str]:
    """The environment of one run: `base`, then the variables of the driver, the agent, and aipass; later ones win.

    The folder of this `aipass` comes first in PATH. Raises AipassError if the agent's `env` refers to a variable that
    the shell does not have.
    """
    env = {**base, **driver}
    for name, value in settings.env.items():
        if isinstance(value, FromEnv):
            if value.from_env not in shell:
                raise AipassError(
                    f"env.{name} takes its value from `{value.from_env}`, which is not set in the shell that ran `aipass up`; set it there, then restart the engine"
                )
            env[name] = shell[value.from_env]
        else:
            env[name] = value
    env.update(own)
    # `git status` of a run would otherwise lock and rewrite the index, and make a commit of a person fail at that moment.
    env["GIT_OPTIONAL_LOCKS"] = "0"
    # First, so that `aipass` inside a run is this version and not another one on PATH.
    env["PATH"] = SCRIPTS + ":" + env.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    return env


def path_of(settings: Agent, shell: Mapping[str, str]) -> str:
    """The PATH of an agent's runs, equal to that of `compose` for a driver that sets no PATH."""
    named = settings.env.get("PATH")
    path = shell.get(named.from_env) if isinstance(named, FromEnv) else named
    return f"{SCRIPTS}:{path or shell.get('PATH', '/usr/local/bin:/usr/bin:/bin')}"


def _is_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)

"""The pre-write hook of agents' CLIs: asks whether a file may be written, so that a refusal tells the model why in words.

Run as a program of its own, `python -I -S prewrite.py DIALECT`, with what the CLI tells its hooks on stdin. It explains; the
fence enforces. So it never fails: whatever it does not understand goes on. Behind the fence the question is a call that the
supervisor answers; without one the rules are read from the file that the engine keeps. Its start is the agent's time:
nothing is imported that is not needed.
"""

import json
import os
import sys

#: Where the engine keeps who owns what, in `.aipass`.
TERRITORY = "territory.json"
#: How tools of the various CLIs call the file that they write.
_PATHS = ("file_path", "notebook_path", "filePath", "path")
#: The lines of a patch that name files.
_PATCH = ("*** Add File: ", "*** Update File: ", "*** Delete File: ", "*** Move to: ")
ADVICE = (
    "It is not yours to write: leave it as it is, work on what you own, and ask its owner for the change."
)


def main(dialect: str) -> int:
    """Answer one question from stdin to stdout."""
    try:
        asked = json.loads(sys.stdin.buffer.read())
        folder = str(asked.get("cwd") or os.getcwd())
        for path in paths(asked.get("tool_input") or asked.get("args") or {}):
            reason = refusal(os.path.join(folder, path))
            if reason:
                print(json.dumps(_words(dialect, f"aipass: {reason} {ADVICE}")))
                break
    except Exception as exc:  # noqa: BLE001 - a hook that breaks must not keep anybody from working
        print(f"aipass: the pre-write hook could not look: {exc!r}", file=sys.stderr)
    return 0


def paths(given: dict[str, object]) -> list[str]:
    """The files that a tool's arguments name: by themselves, or in a patch."""
    found = [value for name in _PATHS if isinstance(value := given.get(name), str)]
    for text in given.values():
        if isinstance(text, str) and "*** Begin Patch" in text:
            lines = (line.strip() for line in text.splitlines())
            found += [line[len(mark) :] for line in lines for mark in _PATCH if line.startswith(mark)]
    return found


def refusal(path: str) -> str:
    """Why the run may not write a path; empty where it may."""
    explained = os.environ.get("AIPASS_DENIED", "")
    if not explained:
        return _by_rules(path)
    known = os.path.getsize(explained) if os.path.exists(explained) else 0
    try:
        # What can never be opened, and is a question to the supervisor.
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECTORY)
    except PermissionError:
        with open(explained, "rb") as file:
            file.seek(known)
            lines = file.read().decode("utf-8", "replace").splitlines()
        # Another refusal may have come at the same moment.
        name = os.path.basename(path)
        of_this = [line for line in lines if name in line] or lines
        return of_this[-1].removeprefix("- ") if of_this else ""
    except OSError:
        pass
    return ""


def _by_rules(path: str) -> str:
    """The same where there is no fence: from the rules, without who holds what."""
    sys.path.insert(0, __file__.rsplit("/aipass/", 1)[0])
    from aipass.supervisor.fence.decide import Grant, Operation, Refused, decide
    from aipass.supervisor.fence.territory import Territory

    root, run = os.environ["AIPASS_ROOT"], int(os.environ["AIPASS_RUN"])
    real = os.path.realpath(path)
    if not real.startswith(root + "/"):
        return ""
    with open(os.path.join(root, ".aipass", TERRITORY)) as file:
        table = json.load(file)
    phase: dict[str, str] = next((one for one in table["phases"] if one["run"] == run), {})
    grant = Grant(
        run, os.environ["AIPASS_AGENT"], Territory.of(table), {}, phase.get("plan"), phase.get("id")
    )
    operation = Operation.WRITE if os.path.exists(real) else Operation.CREATE
    found = decide(grant, operation, (real[len(root) + 1 :],))
    if not isinstance(found, Refused):
        return ""
    whose = f" It belongs to {found.owner}." if found.owner else ""
    return f"`{found.path}`: {found.reason}.{whose}"


def _words(dialect: str, reason: str) -> dict[str, object]:
    if dialect == "gemini":
        return {"decision": "deny", "reason": reason}
    told = {"hookEventName": "PreToolUse", "permissionDecision": "deny", "permissionDecisionReason": reason}
    return {"hookSpecificOutput": told}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or [""]))

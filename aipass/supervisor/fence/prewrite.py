"""The pre-write hook of agents' CLIs: checks a file before a tool writes it, and explains a refusal to the model.

Runs as a program of its own, `python -I -S prewrite.py DIALECT`, with the CLI's hook input on stdin. It only
explains; the fence enforces. So it never fails: input that it does not understand is let through. Behind the
fence it asks the supervisor by a system call; without a fence it reads the rules from the file that the
engine writes. Its start delays the agent, so it imports little.
"""

import json
import os
import sys

#: The file in `.aipass` with the ownership rules, written by the engine.
TERRITORY = "territory.json"
#: Argument names of the written file, across the CLIs' tools.
_PATHS = ("file_path", "notebook_path", "filePath", "path")
#: Prefixes of the lines of a patch that name files.
_PATCH = ("*** Add File: ", "*** Update File: ", "*** Delete File: ", "*** Move to: ")
ADVICE = "It is not yours to write: leave it unchanged, work on files that you own, and ask its owner for the change."


def main(dialect: str) -> int:
    """Read one hook request from stdin and print the refusal, if any. Always returns 0."""
    try:
        asked = json.loads(sys.stdin.buffer.read())
        folder = str(asked.get("cwd") or os.getcwd())
        for path in paths(asked.get("tool_input") or asked.get("args") or {}):
            reason = refusal(os.path.join(folder, path))
            if reason:
                print(json.dumps(_words(dialect, f"aipass: {reason} {ADVICE}")))
                break
    except Exception as exc:  # noqa: BLE001 - a broken hook must not block the agent
        print(f"aipass: the pre-write hook failed, and the write continues: {exc!r}", file=sys.stderr)
    return 0


def paths(given: dict[str, object]) -> list[str]:
    """The files that a tool's arguments name, as arguments or inside a patch."""
    found = [value for name in _PATHS if isinstance(value := given.get(name), str)]
    for text in given.values():
        if isinstance(text, str) and "*** Begin Patch" in text:
            lines = (line.strip() for line in text.splitlines())
            found += [line[len(mark) :] for line in lines for mark in _PATCH if line.startswith(mark)]
    return found


def refusal(path: str) -> str:
    """The reason why the run cannot write a path; empty where it can."""
    explained = os.environ.get("AIPASS_DENIED", "")
    if not explained:
        return _by_rules(path)
    known = os.path.getsize(explained) if os.path.exists(explained) else 0
    try:
        # No kernel opens a file with both flags, so the supervisor takes this call as the hook's question (opening._ask).
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECTORY)
    except PermissionError:
        with open(explained, "rb") as file:
            file.seek(known)
            lines = file.read().decode("utf-8", "replace").splitlines()
        # Another process of the run can be refused at the same moment.
        name = os.path.basename(path)
        of_this = [line for line in lines if name in line] or lines
        return of_this[-1].removeprefix("- ") if of_this else ""
    except OSError:
        pass
    return ""


def _by_rules(path: str) -> str:
    """`refusal` without a fence: by the ownership rules, without the holds of other runs."""
    # `-I -S` leaves site-packages out; imported only here because it delays the start.
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

"""The text of aipass's git hooks, and of the lines that it inserts into an existing shell script. Pure.

A hook of ours is a few lines of POSIX sh that start no program. It creates one empty file in the spool (request queue) of every listed
root: the file only says that git did something, and the engine reads git's own logs to find out what.
"""

from __future__ import annotations

import re
import shlex
import sys

#: The hooks of an install. Not `pre-push`: Git LFS would not write its own. Not `reference-transaction`: git starts it ten times per commit.
HOOKS = ("post-commit", "post-merge", "post-checkout", "post-rewrite")
#: Earlier versions wrote these hooks; where they still exist, they still call the former ones.
FORMER = ("pre-push", "reference-transaction")
#: Written only on request: these two start aipass and wait for its answer.
GUARD, TRAILERS = "pre-commit", "commit-msg"
ALL = (*HOOKS, *FORMER, GUARD, TRAILERS)
MARK = "# Made by aipass"
ASIDE = ".before-aipass"
#: The ending, after ASIDE, of a copy that keeps a user's edits.
EDITED = ".edited"
#: The folder for the hooks' files in a root's spool.
SPOOL = "git"
#: The text of a hook before our lines, where no other hook exists.
EMPTY = b"#!/bin/sh\n"
#: Shells that can run POSIX sh lines, and the options that change nothing about that. Git starts a hook without `#!` by sh.
_SHELLS, _OPTIONS = frozenset(("sh", "bash", "dash", "ksh", "mksh", "zsh", "ash")), re.compile(r"-[euf]+")
#: Safe ways for a script to get its own name or folder. With any other use of `$0` the script may read itself, and our lines could break it.
_ASKS = re.compile(
    rb"""(?:dirname|basename|realpath|readlink(?:\s+-\w+)*)\s+(?:--\s+)?["']?\$(?:0|\{0\}|BASH_SOURCE|\{BASH_SOURCE(?:\[0\])?\})["']?"""
    rb"""|\$\{(?:0|BASH_SOURCE(?:\[0\])?)[%#][^}]*\}"""
    rb"""|["']?\$(?:0|\{0\})["']?\.\w+"""
    rb"""|["']?\$\{BASH_SOURCE(?:\[0\])?\}["']?\s*(?:=|==|!=)\s*["']?\$(?:0|\{0\})["']?"""
    rb"""|\b(?:echo|printf)\b[^\n;|&]*"""
)
_ITSELF = re.compile(rb"\$(?:0|\{0|BASH_SOURCE|\{BASH_SOURCE)")
_BEGIN, _END = f"{MARK}: begin. `aipass git uninstall` takes these lines away.\n", f"{MARK}: end\n"
_BLOCK = re.compile(re.escape(f"{MARK}: begin").encode() + rb".*?" + re.escape(_END).encode(), re.DOTALL)

#: Lines of our hooks without a name that marks them as ours.
_SYNTAX = frozenset(b"|exit|exit 0|fi|done|esac|}|*)|;;|{|(|)|set -f|set +f|IFS='|'|:|#!/bin/sh".split(b"|"))

#: Lines of our hooks that contain a path: in a moved repository they differ from the present text.
_LISTED = re.compile(
    rb"\[ -f .+ \] && \[ -r .+ \] \|\| return 0|done < .*roots'?|if \[ -d .+lfs/objects'? \] \|\| git config lfs\.storage .+"
)

_TELL = """\
_aipass_name={name}
_aipass_tell() {{
    [ -f {roots} ] && [ -r {roots} ] || return 0
    while IFS= read -r _aipass_root; do
        _aipass_note=$_aipass_root/.aipass/spool/{spool}/$_aipass_name
        [ -e "$_aipass_note" ] || [ -L "$_aipass_note" ] || [ ! -d "${{_aipass_note%/*}}" ] || printf '' > "$_aipass_note"
    done < {roots}
}}
"""
_SCRIPT = """\
#!/bin/sh
{mark}: tells its engine that git did something. `aipass git uninstall` brings back what was here before.
{tell}{find}_aipass_call() {{
    [ -x "$_aipass_before" ] || return 0
    exec "$_aipass_before" "$@"
}}
{body}"""
#: Calls a program, or a link, that was moved aside. It is started by its old name from the sibling folder, because one program may serve
#: several hooks and look at its name; files that appeared beside it since are linked there. If another tool runs our hook under its own name
#: (pre-commit: NAME.legacy), and the moved program is that tool, it must not be called again: it runs already.
_PUT_ASIDE = """\
_aipass_here=${{0%/*}}
while :; do case $_aipass_here in *[!/]*/) _aipass_here=${{_aipass_here%/}} ;; *) break ;; esac; done
_aipass_before=$_aipass_here{aside}/$_aipass_name
if [ -d "$_aipass_here{aside}" ]; then
    for _aipass_one in "$_aipass_here"/*; do
        _aipass_one=${{_aipass_one##*/}}
        case $_aipass_one in *{aside}*|{names}) continue ;; esac
        [ -e "$_aipass_here{aside}/$_aipass_one" ] || [ -L "$_aipass_here{aside}/$_aipass_one" ] ||
            ln -s "../${{_aipass_here##*/}}/$_aipass_one" "$_aipass_here{aside}/$_aipass_one" 2> /dev/null
    done
fi
_aipass_one=$_aipass_here/$_aipass_name{aside}
if [ -f "$_aipass_before" ] && ! [ -L "$_aipass_one" ] && ! [ "$_aipass_before" -ef "$_aipass_one" ]; then
    # Somebody has written one of its names anew. That is the hook; what the other says is kept.
    cmp -s "$_aipass_before" "$_aipass_one" || if [ "$_aipass_before" -nt "$_aipass_one" ]; then
        ln -f "$_aipass_one" "$_aipass_one{edited}" && ln -f "$_aipass_before" "$_aipass_one"
    else
        ln -f "$_aipass_before" "$_aipass_one{edited}" && ln -f "$_aipass_one" "$_aipass_before"
    fi 2> /dev/null
fi
[ -x "$_aipass_before" ] || _aipass_before=$_aipass_one
case ${{0##*/}} in
    $_aipass_name) ;;
    {names}) _aipass_before=/dev/null ;;
    *)
        if cmp -s "$_aipass_before" "$_aipass_here/$_aipass_name" || grep -qE '{managers}' "$_aipass_before" 2> /dev/null; then
            _aipass_before=/dev/null
        fi
        ;;
esac
"""
#: Matches the hooks of tools that keep a former hook beside theirs and call it: https://pre-commit.com, https://lefthook.dev,
#: https://typicode.github.io/husky, https://github.com/sds/overcommit. The brackets hide the names, so that none of them takes our hook for its own.
_MANAGERS = "hook[-]impl|[.]lega[c]y|left[h]ook|hus[k]y|over[c]ommit"
#: Finds a tracked hook: in the folder that git would use without us. A tool that asks git for the hooks folder writes its hook beside ours;
#: then both are called.
_WHERE_THEY_LIE = """\
_aipass_before={default}
_aipass_fields=$IFS
IFS='
'
set -f
for _aipass_one in $(git config --type=path --get-all core.hooksPath 2> /dev/null); do
    [ "$_aipass_one" = {ours} ] || _aipass_before=$_aipass_one
done
set +f
IFS=$_aipass_fields
_aipass_before=$_aipass_before/$_aipass_name
_aipass_beside={ours}/$_aipass_name{aside}
if [ "${{0##*/}}" != "$_aipass_name" ] || ! [ "${{0%/*}}" -ef {ours} ]; then
    # Called by what stands beside, which has put it aside: all else is done where that was called.
    [ "$_aipass_called" != "$_aipass_name" ] || exit 0
elif [ -x "$_aipass_beside" ]; then
    _aipass_code=0
    if [ ! -x "$_aipass_before" ]; then
        _aipass_before=$_aipass_beside
        export _aipass_called="$_aipass_name"
    else
        case $_aipass_name in
            post-rewrite|pre-push)
                _aipass_said=$(cat)
                if [ -z "$_aipass_said" ]; then
                    exec < /dev/null
                    _aipass_called=$_aipass_name "$_aipass_beside" "$@" || _aipass_code=$?
                else
                    printf '%s\n' "$_aipass_said" | _aipass_called=$_aipass_name "$_aipass_beside" "$@" || _aipass_code=$?
                    exec <<_aipass_end
$_aipass_said
_aipass_end
                fi
                ;;
            *) _aipass_called=$_aipass_name "$_aipass_beside" "$@" || _aipass_code=$? ;;
        esac
        # What it says of what was done changes nothing.
        case $_aipass_name in post-*) ;; *) [ "$_aipass_code" = 0 ] || exit "$_aipass_code" ;; esac
    fi
fi
"""
#: Git LFS would write its hook into our folder, and cannot where ours exists. Without it a push leaves the large files behind.
_OF_LFS = """\
if [ ! -x "$_aipass_before" ] && command -v git-lfs > /dev/null 2>&1; then
    if [ -d {lfs} ] || git config lfs.storage > /dev/null 2>&1; then exec git lfs pre-push "$@"; fi
fi
"""
_NOTED = "_aipass_tell 2> /dev/null"
#: Only a completed change counts: git also starts this hook while it prepares one.
_COMMITTED = 'if [ "$1" = committed ]; then _aipass_tell 2> /dev/null; fi'
#: Only exit status 3 of aipass stops a commit: a missing or broken aipass must never block the user's work.
_GUARDED = "if [ -x {python} ]; then {python} -E -P -m aipass git guard >&2 2> /dev/null; if [ $? -eq 3 ]; then exit 1; fi; fi"
_NAMED = 'if [ -x {python} ]; then {python} -E -P -m aipass git trailers "$1" > /dev/null 2>&1; fi'
#: The former hook runs last, with unchanged arguments and stdin, and its exit status is ours; or first, where it may refuse the operation.
_LAST, _FIRST = '{act}\n_aipass_call "$@"\nexit\n', '(_aipass_call "$@") || exit\n{act}\nexit 0\n'


def script(name: str, roots: str, calls: tuple[str, str] | None = None, *, passes: bool = False) -> bytes:
    """Return the complete text of a hook of ours.

    `roots`: the path of the list of roots. `calls`, for tracked hooks: our folder of hooks, and git's default one; None where the former hook
    was moved aside. `passes`: the hook only calls a tracked one.
    """
    if calls is None:
        find = _PUT_ASIDE.format(aside=ASIDE, edited=EDITED, names="|".join(ALL), managers=_MANAGERS)
    else:
        find = _WHERE_THEY_LIE.format(ours=shlex.quote(calls[0]), default=shlex.quote(calls[1]), aside=ASIDE)
        if name == "pre-push":
            find += _OF_LFS.format(lfs=shlex.quote(calls[1].removesuffix("hooks") + "lfs/objects"))
    order = _FIRST if name in {"pre-push", GUARD, TRAILERS} and not passes else _LAST
    body = order.format(act=":" if passes else _act(name))
    text = _SCRIPT.format(mark=MARK, tell=_tell(name, roots), find=find, body=body)
    return text.encode("utf-8", "surrogateescape")


def inserted(data: bytes, name: str, roots: str) -> bytes:
    """Return a shell script with our lines inserted after its first line, so that the script keeps its name and place."""
    # Another hook may be a link to this script: then the name in `$0` is different, and our lines must do nothing.
    others = "|".join(one for one in ALL if one != name)
    act = f"case ${{0##*/}} in {others}) exit 0 ;; esac\n{_act(name)}" + ("\nexit 0" if name == GUARD else "")
    fails = "exit 1" if name == GUARD else ":"
    # In a subshell without stdin: our lines must not read the script's input, set its variables, or end it.
    block = f"{_BEGIN}(\n{_tell(name, roots)}{act}\n) < /dev/null || {fails}\n{_END}"
    first, newline, rest = data.partition(b"\n") if data.startswith(b"#!") else (b"", b"", data)
    return first + newline + block.encode("utf-8", "surrogateescape") + rest


def is_passing(data: bytes) -> bool:
    """Return whether a hook of ours only calls a tracked one; also for one of an earlier version or another place."""
    return (
        data.startswith(f"#!/bin/sh\n{MARK}:".encode())
        and re.search(rb"^:\n_aipass_call ", data, re.MULTILINE) is not None
    )


def block(data: bytes) -> bytes:
    """Return our lines in a script; empty where it has none."""
    found = _BLOCK.search(data)
    return found[0] if found else b""


def is_alone(data: bytes) -> bool:
    """Return whether a script contains only our lines."""
    return is_inserted(data) and stripped(data).strip() == EMPTY.strip()


def stripped(data: bytes) -> bytes:
    """Return the script without our lines."""
    return _BLOCK.sub(b"", data)


def is_inserted(data: bytes) -> bool:
    """Return whether a script contains our lines."""
    return _BLOCK.search(data) is not None


def is_shell(data: bytes) -> bool:
    """Return whether a hook is a shell script that does not read itself, so that inserted lines are safe."""
    # As git tells binary from text: a NUL in the first 8000 bytes.
    if b"\0" in data[:8000] or _ITSELF.search(_ASKS.sub(b"", data)) is not None:
        return False
    if not data.startswith(b"#!"):
        return bool(data.strip())
    first, newline, _ = data.partition(b"\n")
    words = first[2:].decode("utf-8", "replace").split()
    if words and words[0].rpartition("/")[2] == "env":
        words = words[2:] if words[1:2] == ["-S"] else words[1:]
    return (
        bool(words and newline)
        and words[0].rpartition("/")[2] in _SHELLS
        and all(_OPTIONS.fullmatch(word) for word in words[1:])
    )


def is_ours(data: bytes) -> bool:
    """Return whether a hook is one of ours or contains our lines."""
    return data.startswith(f"#!/bin/sh\n{MARK}:".encode()) or is_inserted(data)


def edits(data: bytes, wanted: bytes) -> bool:
    """Return whether a user has added lines to a hook of ours; False for the text of another version of aipass."""
    ours = set(wanted.split(b"\n"))
    others = (line.strip() for line in data.split(b"\n") if line not in ours)
    return any(
        line not in _SYNTAX
        and _LISTED.fullmatch(line) is None
        and b"_aipass_" not in line
        and b"-m aipass git" not in line
        and not line.startswith(MARK.encode())
        for line in others
    )


def _tell(name: str, roots: str) -> str:
    return _TELL.format(name=name, roots=shlex.quote(roots), spool=SPOOL)


def _act(name: str) -> str:
    acts = {"reference-transaction": _COMMITTED, GUARD: _GUARDED, TRAILERS: _NAMED}
    return acts.get(name, _NOTED).format(python=shlex.quote(sys.executable))

"""The text of git hooks: ours, and what is put into a shell script that is a hook already. Pure.

A hook of ours is a few lines of POSIX sh that start no program. It leaves one empty file in the spool of every root that a list names: that
git did something is all that it tells, what it was stands in git's own logs.
"""

from __future__ import annotations

import re
import shlex
import sys

#: All else git's logs tell: `pre-push` would keep Git LFS from writing its own, and git starts `reference-transaction` ten times a commit.
HOOKS = ("post-commit", "post-merge", "post-checkout", "post-rewrite")
#: Written by earlier versions, and called where they stand.
FORMER = ("pre-push", "reference-transaction")
#: Written only for those who want them: these ask aipass something.
GUARD, TRAILERS = "pre-commit", "commit-msg"
ALL = (*HOOKS, *FORMER, GUARD, TRAILERS)
MARK = "# Made by aipass"
ASIDE = ".before-aipass"
#: What somebody had put into a hook of ours, or the other of two that somebody changed, is kept by such a name behind that.
EDITED = ".edited"
#: Where hooks leave their files, in a root's spool.
SPOOL = "git"
#: A hook that is ours alone: lines may come behind it.
EMPTY = b"#!/bin/sh\n"
#: What can read lines for POSIX sh as its own, with these options; git itself starts with sh what does not say by what.
_SHELLS, _OPTIONS = frozenset(("sh", "bash", "dash", "ksh", "mksh", "zsh", "ash")), re.compile(r"-[euf]+")
#: Ways to ask for one's own name or folder. Who names the file itself in another way may read it, or start another program with it.
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

#: Lines of ours that do not say whose they are.
_SYNTAX = frozenset(b"|exit|exit 0|fi|done|esac|}|*)|;;|{|(|)|set -f|set +f|IFS='|'|:|#!/bin/sh".split(b"|"))

#: Lines of ours that name the list, of a repository that was moved since.
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
#: A program, or a link, that was put aside. It is started by its old name, beside this folder: it may be several hooks, and know by
#: its name which; what has come beside since is linked beside it. Under another name another tool keeps ours (pre-commit: NAME.legacy); where
#: what was here before is that tool itself, it is not called once more.
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
#: What stands in the hooks of tools that keep another's beside theirs and call it: https://pre-commit.com, https://lefthook.dev,
#: https://typicode.github.io/husky, https://github.com/sds/overcommit. Spelled so that none of them takes ours for its own.
_MANAGERS = "hook[-]impl|[.]lega[c]y|left[h]ook|hus[k]y|over[c]ommit"
#: Hooks that lie where they always did: where git would take them from without us. A tool that asks git where hooks lie writes its own beside
#: ours; both are called.
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
#: Git LFS writes its hook where none is, which here would be among ours; a push without it leaves the files behind.
_OF_LFS = """\
if [ ! -x "$_aipass_before" ] && command -v git-lfs > /dev/null 2>&1; then
    if [ -d {lfs} ] || git config lfs.storage > /dev/null 2>&1; then exec git lfs pre-push "$@"; fi
fi
"""
_NOTED = "_aipass_tell 2> /dev/null"
#: Only what was done is told, not what is being prepared.
_COMMITTED = 'if [ "$1" = committed ]; then _aipass_tell 2> /dev/null; fi'
#: It keeps a commit back only where aipass is there and says so itself; whatever is wrong with it, the commit goes on.
_GUARDED = "if [ -x {python} ]; then {python} -E -P -m aipass git guard >&2 2> /dev/null; if [ $? -eq 3 ]; then exit 1; fi; fi"
_NAMED = 'if [ -x {python} ]; then {python} -E -P -m aipass git trailers "$1" > /dev/null 2>&1; fi'
#: The hook of before goes last, with arguments and stdin as they came, and its status is ours; or first, where it may refuse.
_LAST, _FIRST = '{act}\n_aipass_call "$@"\nexit\n', '(_aipass_call "$@") || exit\n{act}\nexit 0\n'


def script(name: str, roots: str, calls: tuple[str, str] | None = None, *, passes: bool = False) -> bytes:
    """A hook's whole text.

    `roots`: the list's path. `calls`: the folder of hooks that git was told of, and the one that it takes hooks from by default, where those
    of before lie where they always did. `passes`: it only calls one of them.
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
    """A hook that is a shell script, with what is ours behind its first line. It stays the file that it was, by its name and place."""
    # Another hook may be a link to this one: then it is started for that.
    others = "|".join(one for one in ALL if one != name)
    act = f"case ${{0##*/}} in {others}) exit 0 ;; esac\n{_act(name)}" + ("\nexit 0" if name == GUARD else "")
    fails = "exit 1" if name == GUARD else ":"
    block = f"{_BEGIN}(\n{_tell(name, roots)}{act}\n) < /dev/null || {fails}\n{_END}"
    first, newline, rest = data.partition(b"\n") if data.startswith(b"#!") else (b"", b"", data)
    return first + newline + block.encode("utf-8", "surrogateescape") + rest


def is_passing(data: bytes) -> bool:
    """Whether a hook of ours only calls another, whichever version of ours wrote it, for whichever place."""
    return (
        data.startswith(f"#!/bin/sh\n{MARK}:".encode())
        and re.search(rb"^:\n_aipass_call ", data, re.MULTILINE) is not None
    )


def block(data: bytes) -> bytes:
    """What is ours in another's hook."""
    found = _BLOCK.search(data)
    return found[0] if found else b""


def is_alone(data: bytes) -> bool:
    """Whether nothing but what is ours stands in a hook."""
    return is_inserted(data) and stripped(data).strip() == EMPTY.strip()


def stripped(data: bytes) -> bytes:
    """The same without what is ours."""
    return _BLOCK.sub(b"", data)


def is_inserted(data: bytes) -> bool:
    """Whether a hook is another's with what is ours in it."""
    return _BLOCK.search(data) is not None


def is_shell(data: bytes) -> bool:
    """Whether a hook is a script that a shell reads, and nobody else, not even itself."""
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
    """Whether a hook is one of ours, or holds what is ours."""
    return data.startswith(f"#!/bin/sh\n{MARK}:".encode()) or is_inserted(data)


def edits(data: bytes, wanted: bytes) -> bool:
    """Whether somebody has put lines of their own into a hook of ours; another version of ours has none."""
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

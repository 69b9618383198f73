"""Run behind the fence by `aipass doctor`: tries to get out, says what came of it as one JSON object. Standard library only.

Each try must fail; what is its own must work. A try that cannot be made here, or fails by itself, is no proof and is left out.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

RACES = 2000


def _write(path: str) -> None:
    handle = os.open(path, os.O_WRONLY)
    try:
        os.write(handle, b"out")
    finally:
        os.close(handle)


def _through_link() -> None:
    os.symlink("../foreign", "own/link")
    _write("own/link")


def _attempts() -> dict[str, Callable[[], object]]:
    return {
        "writing another's file": lambda: _write("foreign"),
        "through a link": _through_link,
        "through a descriptor": lambda: _write(f"/proc/self/fd/{os.open('foreign', os.O_RDONLY)}"),
        "replacing it": lambda: os.rename("own/file", "foreign"),
        "removing it": lambda: os.unlink("foreign"),
        "a second name for it": lambda: os.link("foreign", "own/second"),
        "its mode, by descriptor": lambda: os.fchmod(os.open("foreign", os.O_RDONLY), 0o777),
        "git's files": lambda: os.mkdir(".git/hooks"),
        "datagrams to other programs": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    }


def _walled(supervisor: int, abstract: str) -> dict[str, Callable[[], object]]:
    return {
        "another program's socket": lambda: socket.socket(socket.AF_UNIX).connect("\0" + abstract),
        "ending the supervisor": lambda: os.kill(supervisor, signal.SIGTERM),
        "the supervisor's memory": lambda: os.close(os.open(f"/proc/{supervisor}/mem", os.O_RDWR)),
    }


def race() -> int:
    """How many of RACES opens got another's file while a second thread exchanged the path: the classic gap."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = ctypes.create_string_buffer(b"own/file")
    stop, got = False, 0

    def swap() -> None:
        while not stop:
            ctypes.memmove(path, b"foreign\0", 8)
            ctypes.memmove(path, b"own/file", 8)

    thread = threading.Thread(target=swap)
    thread.start()
    foreign = os.stat("foreign").st_ino
    for _ in range(RACES):
        handle = libc.open(path, os.O_WRONLY)
        if handle >= 0:
            got += os.fstat(handle).st_ino == foreign
            os.close(handle)
    stop = True
    thread.join()
    return got


def _try(attempts: dict[str, Callable[[], object]], untried: list[str]) -> list[str]:
    """Names of the attempts that were not stopped; `untried` gets those that failed by themselves."""
    out = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except PermissionError:
            continue
        except OSError as exc:
            untried.append(f"{name} ({exc.strerror})")
        else:
            out.append(name)
    return out


def main(arguments: list[str]) -> int:
    """`arguments`: the supervisor's id, the name of a socket that is somebody else's, and the layers to try."""
    supervisor, abstract, layers = int(arguments[0]), arguments[1], arguments[2].split(",")
    os.makedirs("own", exist_ok=True)
    with open("own/file", "w") as file:
        file.write("mine")
    began = time.perf_counter()
    for _ in range(RACES):
        os.close(os.open("own/file", os.O_WRONLY))
    took = (time.perf_counter() - began) / RACES
    untried: list[str] = []
    found: dict[str, object] = {"write_us": round(took * 1e6, 1), "untried": untried}
    if "fence" in layers:
        found["fence"] = _try(_attempts(), untried) + (["a race between two threads"] if race() else [])
    if "wall" in layers:
        found["wall"] = _try(_walled(supervisor, abstract), untried)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

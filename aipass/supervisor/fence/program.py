"""The seccomp filter: compiles the table of calls to a BPF program, as a binary search over their numbers. Pure."""

from __future__ import annotations

import errno
from itertools import count
from typing import TYPE_CHECKING

from aipass.supervisor.fence import bpf, kernel
from aipass.supervisor.fence.bpf import ALLOW
from aipass.supervisor.fence.calls import (
    CALLS,
    LAST_KNOWN,
    WITHOUT_WALL,
    Among,
    Bits,
    Call,
    CallRule,
    NotZero,
    Test,
    Treatment,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: linux/seccomp.h
NOTIFY, ERRNO = 0x7FC00000, 0x00050000
#: Offsets in struct seccomp_data. Both architectures are little-endian: the low half comes first.
NUMBER, ARCH, ARGUMENTS = 0, 4, 16


def build(machine: str, wall: bool = True) -> bytes:
    """The filter for this architecture. `wall`: a Landlock domain enforces what only it can enforce.

    A call of another architecture's interface (32-bit, x32) and a call of a later kernel get ENOSYS.
    """
    table = [*CALLS, *(() if wall else WITHOUT_WALL)]
    numbered = sorted(
        ((n, call) for call in table if (n := call.number(machine)) is not None), key=lambda p: p[0]
    )
    names = (f"at{n}" for n in count())
    items: list[bpf.Item] = [
        bpf.load(ARCH),
        # First the architecture: one number means different calls in the 32-bit interface.
        bpf.Jump(bpf.JEQ, kernel.AUDIT_ARCH[machine], None, "unknown"),
        bpf.load(NUMBER),
        # Also catches x32, whose numbers have bit 30 set.
        bpf.Jump(bpf.JGT, LAST_KNOWN, "unknown", None),
        *_search(numbered, names),
        bpf.Label("allow"),
        bpf.answer(ALLOW),
        bpf.Label("notify"),
        bpf.answer(NOTIFY),
        bpf.Label("unknown"),
        bpf.answer(ERRNO | errno.ENOSYS),
    ]
    return bpf.assemble(items)


def _search(calls: Sequence[tuple[int, Call]], names: Iterator[str]) -> list[bpf.Item]:
    if len(calls) == 1:
        number, call = calls[0]
        return [bpf.Jump(bpf.JEQ, number, None, "allow"), *_rules(call, names)]
    middle = len(calls) // 2
    right = next(names)
    return [
        bpf.Jump(bpf.JGE, calls[middle][0], right, None),
        *_search(calls[:middle], names),
        bpf.Label(right),
        *_search(calls[middle:], names),
    ]


def _rules(call: Call, names: Iterator[str]) -> list[bpf.Item]:
    items: list[bpf.Item] = []
    for rule in call.rules:
        otherwise = next(names)
        for test in rule.tests:
            items += _test(test, next(names), otherwise)
        items += [_verdict(rule), bpf.Label(otherwise)]
    return [*items, bpf.answer(ALLOW)]


def _verdict(rule: CallRule) -> bpf.Instruction:
    match rule.treatment:
        case Treatment.CARRIED:
            return bpf.answer(NOTIFY)
        case Treatment.REFUSED:
            return bpf.answer(ERRNO | rule.error)
        case Treatment.THROUGH:
            return bpf.answer(ALLOW)


def _test(test: Test, holds: str, otherwise: str) -> list[bpf.Item]:
    """Continue after the returned items if the test is true; jump to `otherwise` if it is not."""
    match test:
        case Bits():
            jumps: list[bpf.Item] = [
                bpf.load(ARGUMENTS + 8 * test.argument),
                bpf.Jump(bpf.JSET, test.bits, holds, otherwise),
            ]
        case NotZero():
            jumps = [
                bpf.load(ARGUMENTS + 8 * test.argument),
                bpf.Jump(bpf.JEQ, 0, None, holds),
                bpf.load(ARGUMENTS + 8 * test.argument + 4),
                bpf.Jump(bpf.JEQ, 0, otherwise, holds),
            ]
        case Among():
            jumps = [bpf.load(ARGUMENTS + 8 * test.argument)]
            if test.mask != 0xFFFFFFFF:
                jumps.append(bpf.mask(test.mask))
            if test.shift:
                jumps.append(bpf.shift(test.shift))
            jumps += [bpf.Jump(bpf.JEQ, value, holds, None) for value in test.values[:-1]]
            jumps.append(bpf.Jump(bpf.JEQ, test.values[-1], holds, otherwise))
    return [*jumps, bpf.Label(holds)]

"""Classic BPF programs as data: instructions, labels, and an assembler that resolves the jumps. Pure.

Source of the encoding: linux/filter.h and linux/bpf_common.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LD_ABS, JMP_JA, RET = 0x20, 0x05, 0x06
JEQ, JGT, JGE, JSET = 0x15, 0x25, 0x35, 0x45
AND, RSH = 0x54, 0x74
#: The answer of a filter that lets a call through (linux/seccomp.h).
ALLOW = 0x7FFF0000
#: A conditional jump has 8 bits for its distance.
REACH = 255
#: The kernel rejects longer programs (BPF_MAXINSNS).
LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction that does not jump: load, arithmetic, return."""

    code: int
    k: int


@dataclass(frozen=True, slots=True)
class Jump:
    """Jump to label `yes` if the test is true, else to `no`; None continues with the next instruction."""

    code: int
    k: int
    yes: str | None = None
    no: str | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """The target of a jump."""

    name: str


Item = Instruction | Jump | Label


def load(offset: int) -> Instruction:
    """Load the 32-bit word at `offset` of the data into the accumulator."""
    return Instruction(LD_ABS, offset)


def mask(bits: int) -> Instruction:
    """AND the accumulator with `bits`."""
    return Instruction(AND, bits)


def shift(bits: int) -> Instruction:
    """Shift the accumulator right by `bits`."""
    return Instruction(RSH, bits)


def answer(value: int) -> Instruction:
    """End the program and return `value`."""
    return Instruction(RET, value)


def assemble(items: Sequence[Item]) -> bytes:
    """Encode the program for the kernel. A jump beyond REACH is encoded as a test with two unconditional jumps.

    Raises ValueError for an unknown label, a backward jump, or a program that is too long.
    """
    far: set[int] = set()
    # A far jump takes three instructions, which can push others out of reach: repeat until nothing changes.
    while True:
        where, places = _lay_out(items, far)
        new = {
            index
            for index, item in enumerate(items)
            if isinstance(item, Jump) and index not in far and _reach(item, places[index], where) > REACH
        }
        if not new:
            break
        far |= new
    code = b"".join(_encode(item, places[index], where, index in far) for index, item in enumerate(items))
    if len(code) // 8 > LONGEST:
        raise ValueError(f"a filter of {len(code) // 8} instructions; the kernel allows {LONGEST}")
    return code


def _lay_out(items: Sequence[Item], far: set[int]) -> tuple[dict[str, int], list[int]]:
    where: dict[str, int] = {}
    places, at = [], 0
    for index, item in enumerate(items):
        places.append(at)
        if isinstance(item, Label):
            where[item.name] = at
        else:
            at += 3 if index in far else 1
    return where, places


def _distance(label: str | None, after: int, where: dict[str, int]) -> int:
    if label is None:
        return 0
    if label not in where:
        raise ValueError(f"no label {label!r}")
    if where[label] < after:
        raise ValueError(f"label {label!r} is behind the jump; BPF only jumps forward")
    return where[label] - after


def _reach(jump: Jump, place: int, where: dict[str, int]) -> int:
    return max(_distance(jump.yes, place + 1, where), _distance(jump.no, place + 1, where))


def _encode(item: Item, place: int, where: dict[str, int], is_far: bool) -> bytes:
    if isinstance(item, Label):
        return b""
    if isinstance(item, Instruction):
        return struct.pack("=HBBI", item.code, 0, 0, item.k)
    if not is_far:
        yes, no = (_distance(label, place + 1, where) for label in (item.yes, item.no))
        return struct.pack("=HBBI", item.code, yes, no, item.k)
    # JMP_JA has 32 bits for its distance, so each outcome of the test gets one.
    yes = _distance(item.yes, place + 2, where) if item.yes else 1
    no = _distance(item.no, place + 3, where) if item.no else 0
    return (
        struct.pack("=HBBI", item.code, 0, 1, item.k)
        + struct.pack("=HBBI", JMP_JA, 0, 0, yes)
        + struct.pack("=HBBI", JMP_JA, 0, 0, no)
    )

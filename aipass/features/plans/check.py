"""Validation of a plan before it starts: write conflicts between phases, cycles, unknown agents, unowned deliverables. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from aipass.supervisor.fence.glob import ANY_DEPTH, Globs, segments_of
from aipass.supervisor.fence.territory import Kind, PhaseOwns, Territory
from aipass.text.overlap import MOST_UNDECIDED, UndecidedError, common_path, path_outside

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from aipass.features.plans.model import Phase, Plan


@dataclass(frozen=True, slots=True)
class Problem:
    """A reason why a plan cannot start; or a warning. `witness`: an example path that shows the problem."""

    kind: str
    phases: tuple[str, ...]
    message: str
    witness: str | None = None

    def as_json(self) -> dict[str, object]:
        """The problem as `plan check --json` prints it."""
        return {
            "kind": self.kind,
            "phases": list(self.phases),
            "witness": self.witness,
            "message": self.message,
        }


def problems(plan: Plan, agents: Collection[str]) -> list[Problem]:
    """Every reason why the plan cannot start; empty for a valid plan. `agents`: the names of the configured agents."""
    found = [*_names(plan, agents)]
    found += _cycles(plan)
    before = ancestors(plan)
    # Only pairs without an order can run at the same time. Phases in an order may own the same paths.
    together = [
        (one, other)
        for one, other in combinations(plan.phases, 2)
        if one.id not in before[other.id] and other.id not in before[one.id]
    ]
    for one, other in together:
        if one.agent == other.agent:
            # An agent has at most one run at a time, so the two phases could not run in parallel.
            text = f"both have the agent {one.agent} and may run at the same time; put one `after` the other, or give it to another agent"
            found.append(Problem("agent-twice", (one.id, other.id), text))
    text = "both may write `{}` at the same time; put one `after` the other, or change what they own"
    found += [_overlap(one, other, shared, text) for one, other, shared in overlaps(together)]
    return found + list(_not_owned(plan))


def _overlap(one: Phase, other: Phase, shared: str | UndecidedError, text: str) -> Problem:
    if isinstance(shared, UndecidedError):
        return Problem("overlap", (one.id, other.id), f"cannot compare the paths that they own: {shared}")
    return Problem("overlap", (one.id, other.id), text.format(shared), shared)


def warnings(plan: Plan, files: Sequence[str]) -> list[Problem]:
    """A warning for each pattern that matches none of `files`: the files may not exist yet, or the pattern has a mistake."""
    return [
        Problem("no-match", (phase.id,), f"`{pattern}` matches nothing yet")
        for phase in plan.phases
        for pattern in phase.owns
        if not pattern.startswith("!") and not any(map(Globs((pattern,)).match, files))
    ]


def between(plan: Plan, running: Iterable[Plan]) -> list[Problem]:
    """A problem for each pair of phases, one of this plan and one of a running plan, that may write the same path."""
    return [
        _overlap(one, other, shared, f"phase {other.id} of the running plan {theirs.id} owns `{{}}` as well")
        for theirs in running
        for one, other, shared in overlaps((one, other) for one in plan.phases for other in theirs.phases)
    ]


def ancestors(plan: Plan) -> dict[str, set[str]]:
    """For each phase all phases that must be done before it, direct and indirect. A phase in a cycle contains itself."""
    direct = {phase.id: set(phase.after) for phase in plan.phases}
    found: dict[str, set[str]] = {}
    for name in direct:
        seen: set[str] = set()
        waiting = list(direct[name])
        while waiting:
            before = waiting.pop()
            if before not in seen:
                seen.add(before)
                waiting += direct.get(before, ())
        found[name] = seen
    return found


def overlaps(
    pairs: Iterable[tuple[Phase, Phase]],
) -> Iterator[tuple[Phase, Phase, str | UndecidedError]]:
    """The pairs whose `owns` share a path, each with an example; or with the error where a comparison takes too long.

    Ends after `MOST_UNDECIDED` such errors.
    """
    # A plan of 200 phases has 19,900 pairs. Patterns with different leading folders cannot share a path, and a
    # dictionary finds that without a comparison of the patterns.
    undecided = 0
    heads: dict[int, dict[tuple[str, ...], list[str]]] = {}
    for one, other in pairs:
        for phase in (one, other):
            if id(phase) not in heads:
                heads[id(phase)] = _heads(phase.owns)
        mine, theirs = heads[id(one)], heads[id(other)]
        if not _begin_alike(mine, theirs):
            continue
        try:
            shared: str | UndecidedError | None = common_path(one.owns, other.owns)
        except UndecidedError as exc:
            shared, undecided = exc, undecided + 1
        if shared is not None:
            yield one, other, shared
        if undecided == MOST_UNDECIDED:
            return


def _heads(patterns: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
    """Patterns grouped by their leading folders without wildcards."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for pattern in patterns:
        parts = segments_of(pattern)
        if not parts.include:
            continue
        head: list[str] = []
        for part in parts.parts:
            if part is ANY_DEPTH or any(character in part for character in "*?[\\"):
                break
            head.append(part)
        found[tuple(head)].append(pattern)
    return found


def _begin_alike(one: Mapping[tuple[str, ...], object], other: Mapping[tuple[str, ...], object]) -> bool:
    """Whether one group of leading folders contains a prefix of the other."""
    return any(head[:depth] in other for head in one for depth in range(len(head) + 1)) or any(
        head[:depth] in one for head in other for depth in range(len(head) + 1)
    )


def _names(plan: Plan, agents: Collection[str]) -> Iterator[Problem]:
    seen: set[str] = set()
    known = {phase.id for phase in plan.phases}
    for phase in plan.phases:
        if phase.id in seen:
            yield Problem(
                "missing-after",
                (phase.id,),
                f"two phases have the id `{phase.id}`; ids must be unique within a plan",
            )
        seen.add(phase.id)
        if phase.agent not in agents:
            yield Problem(
                "unknown-agent",
                (phase.id,),
                f"there is no agent `{phase.agent}` here; agents: {', '.join(agents) or 'none'}",
            )
        for before in phase.after:
            if before not in known:
                yield Problem(
                    "missing-after",
                    (phase.id,),
                    f"it is `after` `{before}`, but there is no such phase; phases: {', '.join(sorted(known))}",
                )


def _cycles(plan: Plan) -> Iterator[Problem]:
    after = {phase.id: list(phase.after) for phase in plan.phases}
    told: set[frozenset[str]] = set()
    before = ancestors(plan)
    for name in after:
        if name not in before[name]:
            continue
        circle = _circle(after, name)
        if frozenset(circle) not in told:
            told.add(frozenset(circle))
            yield Problem(
                "cycle",
                tuple(circle),
                f"deadlock: each phase waits for the next: {' -> '.join([*circle, circle[0]])}; remove one `after`",
            )


def _circle(after: Mapping[str, Sequence[str]], start: str) -> list[str]:
    """A shortest path from a phase back to itself, by breadth-first search."""
    came: dict[str, str | None] = {start: None}
    waiting = [start]
    for name in waiting:
        for before in after.get(name, ()):
            if before == start:
                way = [name]
                while (last := came[way[-1]]) is not None:
                    way.append(last)
                return way[::-1]
            if before not in came:
                came[before] = name
                waiting.append(before)
    return [start]


def _not_owned(plan: Plan) -> Iterator[Problem]:
    undecided = 0
    for phase in plan.phases:
        its_own = Territory(phases=(PhaseOwns(plan.id, phase.id, phase.agent, Globs(phase.owns), 1),))
        for deliverable in phase.delivers:
            path = path_outside((deliverable.path,), ())
            # Some paths no agent may write, such as git's own folder, also where `owns` matches them.
            if path is not None and (owner := its_own.owner(path)).kind is Kind.NEVER:
                text = f"it delivers `{deliverable.path}`, but the fence does not allow it to write that: {owner.why}"
                yield Problem("not-owned", (phase.id,), text, path)
                continue
            try:
                witness = path_outside((deliverable.path,), phase.owns)
            except UndecidedError as exc:
                yield Problem("not-owned", (phase.id,), f"it delivers `{deliverable.path}`: {exc}")
                undecided += 1
                if undecided == MOST_UNDECIDED:
                    return
                continue
            if witness is not None:
                text = f"it delivers `{deliverable.path}` but does not own it; add it to `owns`"
                yield Problem("not-owned", (phase.id,), text, witness)

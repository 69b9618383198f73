"""Requests whose words others will read: without what looks like a secret, not even in the log; and none that is too long."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from aipass.core.requests import MAX_SAID
from aipass.text.secret import Secrets

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.core.registry import Core
    from aipass.core.step import Step
    from aipass.event import Fact

#: What a person sends is the person's matter.
SAYING, SENDING = frozenset(("note", "message", "ask", "answer")), "send"
#: A note never fails for its length; what a file has no room for is cut anyway.
LONGEST_NOTE = MAX_SAID // 2


class SecretsFeature:
    """The feature, and its face. Nothing does without it."""

    name = "secrets"

    def setup(self, core: Core) -> None:
        """The filter of requests."""
        self._ledger, self._mask = core.ledger, core.need(Secrets).mask
        #: How an agent is told that something was masked.
        self.tell: Callable[[Step, str, str], object] = _nobody
        core.provide(self)
        core.add_fact_filter(("request.received",), self._without_secrets)

    def _without_secrets(self, step: Step, fact: Fact) -> Fact:
        verb = fact.detail.get("verb")
        if verb not in SAYING and (verb != SENDING or fact.by is None):
            return fact
        if verb == "note" and isinstance(fact.detail.get("text"), str):
            fact = replace(fact, detail=fact.detail | {"text": fact.detail["text"][:LONGEST_NOTE]})
        length = sum(len(str(value)) for value in fact.detail.values())
        if length > MAX_SAID:
            # Whoever asked is refused; nobody reads it.
            kept = {name: value for name, value in fact.detail.items() if name in {"verb", "spool"}}
            why = f"it has {length} characters, and {MAX_SAID} may be said at once; put it into a file, and say which (--attach)"
            return replace(fact, detail={**kept, "refused": why})
        kinds: set[str] = set()

        def clean(value: object) -> object:
            if isinstance(value, list):
                return [clean(one) for one in value]
            if not isinstance(value, str):
                return value
            text, found = self._mask(value)
            kinds.update(found)
            return text

        detail = {name: value if name == "spool" else clean(value) for name, value in fact.detail.items()}
        if not kinds:
            return fact
        run = None if fact.by is None else self._ledger.one("run", {"id": fact.by})
        if run is not None:
            told = f"What looks like a secret was masked in what you said: {', '.join(sorted(kinds))}."
            self.tell(step, run["agent"], told)
        return replace(fact, detail={**detail, "masked": sorted(kinds)})


def _nobody(step: Step, agent: str, text: str) -> None:
    """Where no feature brings messages to agents."""
    del step, agent, text

"""Masks secrets in requests whose texts other agents will read, and refuses such requests if they are too long.

It filters the fact before the event is stored, so that the secret is not in the ledger either.
"""

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

#: The verbs whose texts are masked. `send` only from agents: a person may give work that needs a secret.
SAYING, SENDING = frozenset(("note", "message", "ask", "answer")), "send"
#: A longer note is cut and not refused: its file has no room for more anyway.
LONGEST_NOTE = MAX_SAID // 2


class SecretsFeature:
    """The feature object that other features get by `core.need(SecretsFeature)`.

    It is required: no configuration removes it.
    """

    name = "secrets"

    def setup(self, core: Core) -> None:
        """Register the filter of request facts. Needs Secrets, the patterns."""
        self._ledger, self._mask = core.ledger, core.need(Secrets).mask
        #: Sends a message to an agent whose text was masked; the feature that delivers messages replaces it.
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
            # Without the text, which could contain a secret: a refused request is stored as an event as well.
            kept = {name: value for name, value in fact.detail.items() if name in {"verb", "spool"}}
            why = f"the text has {length} characters, and the limit is {MAX_SAID}; put it into a file and attach that (--attach)"
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

        # `spool` is the path of the request's file: it must stay exact, so that the file can be removed.
        detail = {name: value if name == "spool" else clean(value) for name, value in fact.detail.items()}
        if not kinds:
            return fact
        run = None if fact.by is None else self._ledger.one("run", {"id": fact.by})
        if run is not None:
            told = f"Text that looks like a secret was masked in your message: {', '.join(sorted(kinds))}."
            self.tell(step, run["agent"], told)
        return replace(fact, detail={**detail, "masked": sorted(kinds)})


def _nobody(step: Step, agent: str, text: str) -> None:
    """The default of `SecretsFeature.tell`, which does nothing."""
    del step, agent, text

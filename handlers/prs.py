"""The handler of merged PRs: starts the author of a PR after its merge. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass import Dispatch, Handler, Ignore, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass import Action, Event, View
    from aipass.config.model import Config


@hookimpl
def register_handlers(config: Config) -> list[Handler]:
    """Return the handler if `[pr] wake_author` is set."""
    return [Handler("merged PRs", ("pr.merged",), on_merged)] if config.pr.wake_author else []


def on_merged(event: Event, view: View) -> Iterable[Action]:
    """Dispatch the author of the PR; ignore the event if aipass.toml no longer configures it."""
    about = event.detail
    if view.agent(about["agent"]) is None:
        return [Ignore(f"its author `{about['agent']}` is no longer a configured agent")]
    text = (
        f"Your PR {about['pr']} “{about['title']}” was merged into {about['branch'] or 'the branch'} as {about['sha'][:10]}. "
        "If you planned work after it, continue with that; otherwise there is nothing to do."
    )
    subject = f"PR {about['pr']} is merged"
    return [
        Dispatch(about["agent"], text, subject=subject, key=subject, sender="pr", stem=f"pr-{about['pr']}")
    ]

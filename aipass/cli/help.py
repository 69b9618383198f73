"""The verb `aipass help`: explains the verbs, one verb, or all settings of aipass.toml."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aipass.errors import ConfigError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

SETTINGS = "settings"


@click.command("help")
@click.argument("topic", metavar="[VERB|settings]", required=False)
@click.pass_context
def command(context: click.Context, topic: str | None) -> None:
    """Explain VERB, or with `settings` every key of aipass.toml. Without an argument, list the verbs."""
    from aipass.cli.main import VERBS, cli

    above = context.parent
    assert above is not None
    if topic is None:
        click.echo(above.get_help())
    elif topic == SETTINGS:
        # The text has 250 lines; without a terminal the pager prints it unchanged.
        click.echo_via_pager(settings())
    elif topic in VERBS:
        verb = cli.get_command(above, topic)
        assert verb is not None
        with click.Context(verb, info_name=topic, parent=above) as below:
            click.echo(verb.get_help(below))
    else:
        raise ConfigError(f"there is no help about `{topic}`; give a verb, or `{SETTINGS}`")


def settings() -> str:
    """Return all keys of aipass.toml as Markdown: one heading for each key with its default, then its meaning. docs/settings.md is this text."""
    from aipass.config import model

    parts = [
        "# Settings\n",
        "All keys of aipass.toml. `aipass schema config` prints the same as JSON Schema.\n",
    ]
    tables: list[tuple[str, type[model.Model]]] = [
        ("", model.Config),
        ("agents.<name>.", model.Agent),
        ("on[].", model.Rule),
    ]
    # Collected from the model instead of listed here, so that a new table is never left out.
    for name, field in model.Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, model.Model):
            tables.append((f"{name}.", field.annotation))
    for prefix, table in tables:
        for name, field in table.model_fields.items():
            if prefix or name == "orchestrator":
                parts.append(f"## `{prefix}{name}{_default(name, field)}`\n\n{field.description}.\n")
    return "\n".join(parts)


def _default(name: str, field: FieldInfo) -> str:
    from aipass.text.units import parse_duration, show_duration

    if field.is_required():
        return " (required)"
    if name == "concurrency":
        return ""  # computed from this machine, so docs/settings.md would differ on every machine
    value: Any = field.get_default(call_default_factory=True)
    if value is None:
        return ""
    # The model holds durations in seconds; users write them with a unit, so the default is shown in that form.
    if any(getattr(one, "func", None) is parse_duration for one in field.metadata):
        return f' = "{show_duration(value).replace(" ", "")}"' if value else " = 0"
    if isinstance(value, tuple):
        return " = [" + ", ".join(f'"{one}"' for one in value) + "]"
    if isinstance(value, bool):
        return f" = {str(value).lower()}"
    return f' = "{value}"' if isinstance(value, str) else f" = {value}"

"""``learnreg models``: the shipped models and their cards."""

from __future__ import annotations

from typing import Annotated

import typer

from learnreg.commands.terminal import Json, say
from learnreg.errors import ConfigError
from learnreg.models.cards import card_lines, headline
from learnreg.models.shipped import pretrained

__all__ = ["models"]


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="one of them, to show its card", show_default="all of them")
    ] = None,
    json: Json = False,
) -> None:
    """List the models that are shipped, or show the card of one: how it was made and measured, what it is not for.

    NAME stands for the model in learnreg reconstruct, evaluate, adapt and accuracy, and in lr.load.
    """
    cards = pretrained()
    if name is not None and name not in cards:
        raise ConfigError(f"{name}: not a shipped model. Shipped models: {', '.join(cards) or 'none in this version'}.")
    if name is not None:
        lines = [f"# {name}", "", *card_lines(cards[name])]
    else:
        lines = [f"{known}: {headline(card)}" for known, card in cards.items()] or ["none in this version"]
    for line in lines:
        say(line, json)
    if json:
        from learnreg.models.tensor_files import dumps

        typer.echo(dumps(cards if name is None else cards[name]))

"""A command of another package, for entry points to name; tests say what it does."""

from collections.abc import Callable

import click

does: list[Callable[[], None]] = []


@click.command()
def command() -> None:
    for action in does:
        action()

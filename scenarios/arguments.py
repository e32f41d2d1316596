"""Arguments: what several commands take, and how they end on a user's mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from scenarios.load import Draft
    from scenarios.schema import Scenario

File = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A scenario file, or the name of a packaged one.")
]
Sets = Annotated[
    list[str],
    typer.Option("--set", metavar="A.B.C=VALUE", help="Change a value of the scenario; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def fail(status: int, message: str) -> NoReturn:
    """End the command with an exit status and a message."""
    typer.echo(message, err=True)
    raise typer.Exit(status)


def loaded(file: str, changes: list[str]) -> tuple[Draft, Scenario]:
    """A scenario with its changes, as it was read and as it is meant; ends the command on a mistake."""
    from scenarios.check import ScenarioInvalid, validate
    from scenarios.load import ScenarioUnreadable, load

    try:
        draft = load(file, changes)
        return draft, validate(draft)
    except (ScenarioInvalid, ScenarioUnreadable) as error:
        fail(2, str(error))


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)

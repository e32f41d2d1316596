"""Command line: `gridpace run`, `check`, `schema`, `report`, `list`.

Exit status: 0 all expectations held, 1 one did not, 2 bad input, 3 the run broke, 130 stopped early.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from scenarios.load import Draft
    from scenarios.schema import Scenario

# Each command imports what it needs: the help and a check of a file need no optimiser.

app = typer.Typer(
    name="gridpace",
    help="A real-time co-simulation controller for power distribution.\n\n"
    "Exit status: 0 all expectations held, 1 one did not, 2 bad input, 3 the run broke, 130 stopped early.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

File = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A scenario file, or the name of a packaged one.")
]
Sets = Annotated[
    list[str],
    typer.Option("--set", metavar="A.B.C=VALUE", help="Change a value of the scenario; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def main() -> None:
    """Entry point of the command `gridpace`."""
    app()


def _fail(status: int, message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(status)


def _load(file: str, changes: list[str]) -> tuple[Draft, Scenario]:
    from scenarios.check import ScenarioInvalid, validate
    from scenarios.load import ScenarioUnreadable, load

    try:
        draft = load(file, changes)
        return draft, validate(draft)
    except (ScenarioInvalid, ScenarioUnreadable) as error:
        _fail(2, str(error))


@app.command()
def run(
    file: File,
    out: Annotated[Path, typer.Option(help="Folder in which the run's own folder is made.")] = Path("runs"),
    changes: Sets = [],  # noqa: B006
    clock: Annotated[
        str | None, typer.Option(help="fast, scaled or live; short for --set clock.mode=...")
    ] = None,
    log_every: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Pause between progress lines off a terminal."),
    ] = 10.0,
    as_json: Json = False,
) -> None:
    """Run a scenario and judge it."""
    from bridges.broker import NoBroker
    from bridges.bus import BusUnreachable
    from scenarios.check import ScenarioInvalid
    from scenarios.report import show, summary
    from scenarios.run import CannotWrite, run_blocking
    from scenarios.watch import console, watch

    draft, scenario = _load(file, [*changes, *([f"clock.mode={clock}"] if clock else [])])
    try:
        with watch(scenario, quiet=as_json, log_every_s=log_every) as observer:
            result = run_blocking(draft, scenario, root=out, observer=observer)
    except ScenarioInvalid as error:
        _fail(2, str(error))
    except (BusUnreachable, NoBroker) as error:
        _fail(2, f"scenario {scenario.name}: bus: {error}")
    except CannotWrite as error:
        _fail(2, str(error))
    except KeyboardInterrupt:  # while the scenario is built; afterwards it ends the run in good order
        _fail(130, "interrupted before the first step; nothing was run")
    if as_json:
        typer.echo(json.dumps(summary(result.directory).as_dict(), indent=2))
    else:
        show(summary(result.directory), console())
    raise typer.Exit(int(result.exit))


@app.command()
def check(file: File, changes: Sets = [], as_json: Json = False) -> None:  # noqa: B006
    """List every mistake of a scenario, with its place, its value and what to do."""
    from dataclasses import asdict

    from scenarios.build import build
    from scenarios.check import ScenarioInvalid, validate
    from scenarios.load import ScenarioUnreadable, load

    problems = []
    try:
        draft = load(file, changes)
        build(draft, validate(draft))
    except ScenarioUnreadable as error:
        _fail(2, str(error))
    except ScenarioInvalid as error:
        problems = error.problems
    if as_json:
        typer.echo(json.dumps({"scenario": file, "problems": [asdict(p) for p in problems]}, indent=2))
    elif problems:
        typer.echo(f"{file}: {len(problems)} problem(s)", err=True)
        for problem in problems:
            typer.echo(f"  {problem}", err=True)
    else:
        typer.echo(f"{file}: no problem found")
    raise typer.Exit(2 if problems else 0)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a scenario file, from which editors complete."""
    from scenarios.schema import file_schema

    typer.echo(json.dumps(file_schema(), indent=2))


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
    as_json: Json = False,
    picture: Annotated[Path | None, typer.Option(help="Also draw the run into this PNG or SVG file.")] = None,
) -> None:
    """Print what a run did."""
    import pyarrow as pa

    from scenarios.report import NotARun, show, summary
    from scenarios.watch import console

    try:
        found = summary(directory)
        if picture is not None:
            from scenarios.picture import NoPicture, draw

            try:
                draw(directory, picture)
            except NoPicture as error:
                _fail(2, str(error))
    except NotARun as error:
        _fail(2, str(error))
    except (pa.ArrowException, OSError) as error:
        _fail(2, f"{directory}: a table is damaged: {error}")
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        show(found, console())


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the packaged scenarios and controllers, with the sources of their methods."""
    from scenarios.catalogue import controllers, scenarios
    from scenarios.watch import console

    found = {"scenarios": scenarios(), "controllers": controllers()}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for heading, entries in found.items():
        console().print(f"[bold]{heading}[/bold]")
        for entry in entries:
            console().print(f"  {entry['name']}", highlight=False)
            for line in (entry["description"], *entry["sources"]):
                console().print(f"      {line}", highlight=False, style="dim", markup=False)

"""Command line: `gridpace run`, `check`, `envelopes`, `compare`, `csip`, `schema`, `report`, `list`.

Exit status: 0 all expectations held, 1 one did not, 2 bad input, 3 the run broke, 130 stopped early.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from datetime import datetime

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

Methods = Annotated[
    list[str],
    typer.Option("--method", metavar="METHOD", help="Acronym or class of a method; may be repeated."),
]
Uncertified = Annotated[
    bool, typer.Option("--uncertified", help="As the linear model says, without the AC power flow's check.")
]


def main() -> None:
    """Entry point of the command `gridpace`."""
    app()


def _fail(status: int, message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(status)


def _instant(text: str) -> datetime:
    from datetime import UTC, datetime

    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        _fail(2, f"--at {text}: is no date and time; write it as 2026-06-21T12:00:00Z")
    return at if at.tzinfo else at.replace(tzinfo=UTC)


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
    from scenarios.supervisor import NoProcess
    from scenarios.watch import console, watch

    draft, scenario = _load(file, [*changes, *([f"clock.mode={clock}"] if clock else [])])
    try:
        with watch(scenario, quiet=as_json, log_every_s=log_every) as observer:
            result = run_blocking(draft, scenario, root=out, observer=observer)
    except ScenarioInvalid as error:
        _fail(2, str(error))
    except (BusUnreachable, NoBroker) as error:
        _fail(2, f"scenario {scenario.name}: bus: {error}")
    except (CannotWrite, NoProcess) as error:
        _fail(2, str(error))
    except KeyboardInterrupt:  # while the scenario is built; afterwards it ends the run in good order
        _fail(130, "interrupted before the first step; nothing was run")
    if as_json:
        typer.echo(json.dumps(summary(result.directory).as_dict(), indent=2))
    else:
        show(summary(result.directory), console())
    raise typer.Exit(int(result.exit))


@app.command()
def envelopes(
    file: File,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="An instant of the run, e.g. 2026-06-21T12:00:00Z.")
    ] = None,
    method: Methods = [],  # noqa: B006
    changes: Sets = [],  # noqa: B006
    picture: Annotated[
        Path | None,
        typer.Option(help="PNG or SVG file to draw into; envelopes.png where matplotlib is installed."),
    ] = None,
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Draw nothing.")] = False,
    uncertified: Uncertified = False,
    as_json: Json = False,
) -> None:
    """Print and draw the envelopes of every method for one instant, with certificate and fairness."""
    from importlib.util import find_spec

    from controllers.envelopes.static_limits import apparent_mva
    from scenarios import envelope_picture, envelope_report
    from scenarios.build import build
    from scenarios.check import ScenarioInvalid
    from scenarios.envelopes import NoSuchMethod, NotInTheRun, ask, check_options, chosen, observe, step_at
    from scenarios.envelopes import shared_options as options_of
    from scenarios.picture import NoPicture
    from scenarios.watch import console

    draft, scenario = _load(file, changes)
    try:
        wanted = chosen(method)
        step = step_at(scenario, None if at is None else _instant(at))
        built = build(draft, scenario)
        seen = observe(built, step)
    except (NoSuchMethod, NotInTheRun, ScenarioInvalid) as error:
        _fail(2, str(error))
    check = None if uncertified else check_options(draft, scenario)
    answers = [ask(built, cls, options_of(draft, scenario, cls), seen, check=check) for cls in wanted]
    if as_json:
        said = {"scenario": scenario.name, "time": seen.time.isoformat(), "certified": not uncertified}
        typer.echo(json.dumps({**said, "methods": [answer.as_dict() for answer in answers]}, indent=2))
    else:
        envelope_report.show(answers, scenario.name, seen.time, console())
    by_itself = picture is None and not as_json and find_spec("matplotlib") is not None
    if no_picture or not (picture or by_itself) or not any(answer.devices for answer in answers):
        return
    into = picture or Path("envelopes.png")
    capability = {name: apparent_mva(device) for name, device in built.site.devices.items()}
    try:
        envelope_picture.draw(answers, into, scenario=scenario.name, at=seen.time, capability=capability)
    except NoPicture as error:
        _fail(2, str(error))
    if not as_json:
        typer.echo(f"picture: {into}")


@app.command()
def compare(
    file: File,
    method: Methods = [],  # noqa: B006
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the runs, one a method.")] = Path(
        "comparison"
    ),
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Steps; the scenario's, at most a day, if not given."),
    ] = None,
    changes: Sets = [],  # noqa: B006
    uncertified: Uncertified = False,
    as_json: Json = False,
) -> None:
    """Run one day under each method, with the same weather, and print what each led to."""
    from scenarios.compare import Refused, drafts, show, titled
    from scenarios.compare import as_json as plain
    from scenarios.compare import compare as run_all
    from scenarios.envelopes import NoSuchMethod
    from scenarios.watch import console

    draft, scenario = _load(file, changes)
    try:
        runs = list(drafts(draft, scenario, method, certified=not uncertified, steps=steps))
    except NoSuchMethod as error:
        _fail(2, str(error))
    try:
        found = run_all(runs, out, certified=not uncertified, say=lambda line: typer.echo(line, err=True))
    except KeyboardInterrupt:
        _fail(130, f"interrupted; {out} keeps every finished step")
    if as_json:
        typer.echo(json.dumps({"scenario": scenario.name, "methods": plain(found)}, indent=2))
    else:
        title = f"{scenario.name}: {runs[0][1].raw['steps']} steps under each {titled(runs, uncertified)}"
        show(found, title, console())
    if all(isinstance(each, Refused) for each in found):
        raise typer.Exit(2)


@app.command()
def check(file: File, changes: Sets = [], as_json: Json = False) -> None:  # noqa: B006
    """List every mistake of a scenario, with its place, its value and what to do."""
    from dataclasses import asdict

    from scenarios.build import build
    from scenarios.check import Problem, ScenarioInvalid, notices, validate
    from scenarios.load import ScenarioUnreadable, load

    problems: list[Problem] = []
    noticed: list[Problem] = []
    try:
        draft = load(file, changes)
        scenario = validate(draft)
        build(draft, scenario)
        noticed = notices(draft, scenario)
    except ScenarioUnreadable as error:
        _fail(2, str(error))
    except ScenarioInvalid as error:
        problems = error.problems
    if as_json:
        lists = {"problems": problems, "notices": noticed}
        found = {name: [asdict(one) for one in several] for name, several in lists.items()}
        typer.echo(json.dumps({"scenario": file, **found}, indent=2))
    elif problems:
        typer.echo(f"{file}: {len(problems)} problem(s)", err=True)
        for problem in problems:
            typer.echo(f"  {problem}", err=True)
    else:
        typer.echo(f"{file}: no problem found")
        for notice in noticed:
            typer.echo(f"  notice: {notice}", err=True)
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


@app.command()
def csip(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="The controls of that instant; of the last by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the XML files; printed if not given.")
    ] = None,
    connection: Annotated[
        bool, typer.Option("--connection", help="Limits of the connection point, not of the device.")
    ] = False,
    version: Annotated[str, typer.Option(metavar="VERSION", help="Of CSIP-AUS: 1.3 or 1.2.")] = "1.3",
) -> None:
    """Write the envelopes that a run recorded as CSIP-AUS DERControls: active power, valid while Q = 0."""
    from bridges.csip import NoCsip, Profile
    from scenarios.controls import NoControls, defaults_of, documents, held
    from scenarios.report import NotARun
    from simulators.journal import NoTables

    try:
        profile = Profile(at="connection" if connection else "device", version=version)  # type: ignore[arg-type]
        defaults = defaults_of(directory)
        now, several = held(directory, None if at is None else _instant(at))
        written = 0
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        for name, document in documents(several, defaults, now, profile):
            if isinstance(document, str):
                typer.echo(f"{name}: left out: {document}", err=True)
                continue
            if out is None:
                typer.echo(document.decode())
            else:
                (out / name).write_bytes(document)
            written += 1
    except (NotARun, NoTables, NoControls, NoCsip, ValueError) as error:
        _fail(2, str(error))
    except BrokenPipeError:
        raise  # whoever read what is printed has left: typer ends quietly
    except OSError as error:
        _fail(2, f"{out}: cannot be written: {error.strerror or error}")
    if out is not None:
        typer.echo(f"{written} documents of {now:%Y-%m-%d %H:%M:%S} UTC in {out}")


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

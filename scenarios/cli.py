"""Command line: `gridpace run`, `check`, `envelopes`, `compare`, `csip`, `certs`, `device`,
`sunspec-emulator`, `operate`, `schema`, `report`, `replay`, `list`.

Exit status: 0 all expectations held, 1 one did not, 2 bad input, 3 the run broke, 130 stopped early.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scenarios.arguments import File, Json, Sets, fail, loaded
from scenarios.field_commands import certs, device, operate, sunspec_emulator

if TYPE_CHECKING:
    from datetime import datetime

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


def _instant(text: str) -> datetime:
    from datetime import UTC, datetime

    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        fail(2, f"--at {text}: is no date and time; write it as 2026-06-21T12:00:00Z")
    return at if at.tzinfo else at.replace(tzinfo=UTC)


@app.command()
def run(
    file: Annotated[
        str | None,
        typer.Argument(metavar="SCENARIO", help="A scenario file, or the name of a packaged one."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder in which the run's own folder is made.")] = Path("runs"),
    name: Annotated[
        str | None,
        typer.Option(
            help="Of that folder and of the run's topics; the scenario's and the time if not given."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Go on with the run in this folder, whose process was killed."),
    ] = None,
    changes: Sets = [],  # noqa: B006
    clock: Annotated[
        str | None, typer.Option(help="fast, scaled or live; short for --set clock.mode=...")
    ] = None,
    log_every: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Pause between progress lines off a terminal."),
    ] = 10.0,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve Prometheus metrics there, e.g. 127.0.0.1:9464."),
    ] = None,
    metrics_anywhere: Annotated[
        bool, typer.Option("--metrics-anywhere", help="Allow an address that others can reach.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a scenario and judge it, or go on with a run that was killed."""
    from bridges.broker import NoBroker
    from bridges.bus import BusUnreachable
    from scenarios.check import ScenarioInvalid
    from scenarios.metrics import NoMetrics, address, served
    from scenarios.report import show, summary
    from scenarios.resume import CannotResume, killed, resume_blocking
    from scenarios.run import CannotWrite, run_blocking
    from scenarios.supervisor import NoProcess
    from scenarios.watch import console, watch

    changes = [*changes, *([f"clock.mode={clock}"] if clock else [])]
    given = None
    if resume is not None and name is not None:
        fail(2, "--resume keeps the run's name and topics; leave --name out")
    if file is not None:
        draft, given = loaded(file, changes)
    elif resume is None:
        fail(2, "which SCENARIO? Give a file or a name (gridpace list), or --resume DIR")
    elif changes:
        fail(2, "--resume goes on with the scenario that was begun; leave --set and --clock out")
    try:
        scenario = killed(resume, given).scenario if resume is not None else given
        assert scenario is not None
        where = address(metrics, anywhere=metrics_anywhere) if metrics is not None else None
        with (
            watch(scenario, quiet=as_json, log_every_s=log_every) as watcher,
            served(
                where, watcher, scenario.grid.limits.v_pu, broker=scenario.bus.kind != "memory"
            ) as observer,
        ):
            if resume is not None:
                result = resume_blocking(resume, observer=observer, given=given)
            else:
                result = run_blocking(draft, scenario, root=out, observer=observer, name=name)
    except (ScenarioInvalid, CannotResume, NoMetrics) as error:
        fail(2, str(error))
    except (BusUnreachable, NoBroker) as error:
        fail(2, f"{resume or file}: bus: {error}")
    except CannotWrite as error:
        fail(2 if resume is None else 3, str(error))
    except NoProcess as error:
        fail(2, str(error))
    except KeyboardInterrupt:  # while the scenario is built; afterwards it ends the run in good order
        fail(130, "interrupted before the first step; nothing was run")
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

    from controllers.rating import apparent_mva
    from scenarios import envelope_picture, envelope_report
    from scenarios.build import build
    from scenarios.check import ScenarioInvalid
    from scenarios.envelopes import NoSuchMethod, NotInTheRun, ask, check_options, chosen, observe, step_at
    from scenarios.envelopes import shared_options as options_of
    from scenarios.picture import NoPicture
    from scenarios.watch import console

    draft, scenario = loaded(file, changes)
    try:
        wanted = chosen(method)
        step = step_at(scenario, None if at is None else _instant(at))
        built = build(draft, scenario)
        seen = observe(built, step)
    except (NoSuchMethod, NotInTheRun, ScenarioInvalid) as error:
        fail(2, str(error))
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
        fail(2, str(error))
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

    draft, scenario = loaded(file, changes)
    try:
        runs = list(drafts(draft, scenario, method, certified=not uncertified, steps=steps))
    except NoSuchMethod as error:
        fail(2, str(error))
    try:
        found = run_all(runs, out, certified=not uncertified, say=lambda line: typer.echo(line, err=True))
    except KeyboardInterrupt:
        fail(130, f"interrupted; {out} keeps every finished step")
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
        fail(2, str(error))
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

    from scenarios.events import BadEvents
    from scenarios.report import NotARun, show, summary
    from scenarios.watch import console

    try:
        found = summary(directory)
        if picture is not None:
            from scenarios.picture import NoPicture, draw

            try:
                draw(directory, picture)
            except NoPicture as error:
                fail(2, str(error))
    except (NotARun, BadEvents) as error:
        fail(2, str(error))
    except (pa.ArrowException, OSError) as error:
        fail(2, f"{directory}: a table is damaged: {error}")
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        show(found, console())


@app.command()
def replay(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
    other: Annotated[
        str | None,
        typer.Option("--with", metavar="SCENARIO", help="Ask the controllers of this one instead."),
    ] = None,
    changes: Sets = [],  # noqa: B006
    every: Annotated[bool, typer.Option("--all", help="Print each difference, not only the first.")] = False,
    as_json: Json = False,
) -> None:
    """Ask a run's controllers offline what they were asked then. Exit status 1: an answer is another one,
    2: none was compared."""
    from copy import deepcopy
    from dataclasses import asdict, replace

    from scenarios.check import ScenarioInvalid
    from scenarios.load import ScenarioUnreadable, apply, load
    from scenarios.replay import Difference, NothingToReplay
    from scenarios.replay import replay as ask_again
    from scenarios.resume import CannotResume, recorded

    def say(one: Difference) -> None:
        if every and not as_json:
            typer.echo(f"step {one.step}, {one.controller}: {one.what}")

    try:
        draft = None
        if other is not None:
            draft = load(other, changes)
        elif changes:
            draft = recorded(directory)[2]
            draft = replace(draft, raw=deepcopy(draft.raw))
            for change in changes:
                apply(draft.raw, change)
        found = ask_again(directory, draft, differs=say)
    except (CannotResume, NothingToReplay, ScenarioInvalid, ScenarioUnreadable) as error:
        fail(2, str(error))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        for why, number in found.unasked.items():
            typer.echo(f"{number} answers {why}; not compared")
        if found.unrecorded:
            typer.echo(
                f"{found.unrecorded} steps have no record of what was asked; nothing is compared there"
            )
        if not found.asked:
            typer.echo("no answer was compared", err=True)
        elif found.first is None:
            typer.echo(f"{found.asked} answers, all as they were")
        else:
            typer.echo(f"{found.different} of {found.asked} answers are others than they were; the first:")
            typer.echo(f"step {found.first.step}, {found.first.controller}: {found.first.what}")
    raise typer.Exit(2 if not found.asked else 0 if found.first is None else 1)


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
        fail(2, str(error))
    except BrokenPipeError:
        raise  # whoever read what is printed has left: typer ends quietly
    except OSError as error:
        fail(2, f"{out}: cannot be written: {error.strerror or error}")
    if out is not None:
        typer.echo(f"{written} documents of {now:%Y-%m-%d %H:%M:%S} UTC in {out}")


for command in (certs, sunspec_emulator, device, operate):
    app.command()(command)


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

"""Field commands: `gridpace certs`, `sunspec-emulator`, `device`, `operate`: what a lab has beside a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scenarios.arguments import File, Sets, fail, loaded, say


def certs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the certificates and keys.")],
    device: Annotated[
        list[str], typer.Option(metavar="NAME", help="A device or gateway; may be repeated.")
    ] = [],  # noqa: B006
    scenario: Annotated[
        str | None,
        typer.Option(metavar="SCENARIO", help="All devices and processes of controllers of a scenario."),
    ] = None,
    host: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="Under which the broker is reached, beside localhost; repeatable."),
    ] = [],  # noqa: B006
    days: Annotated[int, typer.Option(metavar="N", min=1, max=36_500, help="How long they are valid.")] = 365,
) -> None:
    """Make a test authority and certificates: of a broker, a controller, an observer and devices."""
    try:
        from scenarios.certs import SERVER, NoCertificates, how_to_use, make
    except ImportError:
        fail(2, "certs needs the package cryptography: pip install 'gridpace[certs]'")
    from scenarios.supervisor import processes_of

    clients = {}
    if scenario is not None:
        _, found = loaded(scenario, [])
        clients = {part.name: "device" for part in found.devices}
        for name in processes_of(found):
            if name in clients:
                fail(2, f"{name} is a device and a process of a controller; rename one, each has its rights")
            clients[name] = "process"
    clients |= dict.fromkeys(device, "device")
    try:
        anew = [*device, *([SERVER] if host else [])]
        made = make(directory, clients=clients, hosts=host, days=days, anew=anew)
    except NoCertificates as error:
        fail(2, str(error))
    for line in how_to_use(directory, made):
        typer.echo(line)


def sunspec_emulator(
    file: Annotated[
        str | None, typer.Argument(metavar="[SCENARIO", help="A scenario whose devices are emulated.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...]", help="Of devices; all if none is given.")
    ] = None,
    kind: Annotated[
        list[str], typer.Option(metavar="KIND", help="Without a scenario: battery or pv; may be repeated.")
    ] = ["pv"],  # noqa: B006
    units: Annotated[int, typer.Option(metavar="N", min=1, help="Without a scenario: how many.")] = 1,
    p_mw: Annotated[float, typer.Option(help="Without a scenario: rated power.")] = 0.1,
    s_mva: Annotated[float | None, typer.Option(help="Apparent power; the rated power if not given.")] = None,
    e_mwh: Annotated[float | None, typer.Option(help="Of a battery; two hours if not given.")] = None,
    drive: Annotated[
        float | None, typer.Option(help="Sun or wind, in per unit; the profile's, or 1 without a scenario.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: a free one, which is printed.")] = 5020,
    own_ports: Annotated[
        bool, typer.Option("--own-ports", help="A port for each, from --port on, instead of a unit number.")
    ] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.01, help="How often points are held.")
    ] = 1.0,
    log: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON lines of all that happens.")] = None,
    changes: Sets = [],  # noqa: B006
) -> None:
    """Emulate devices that speak SunSpec Modbus TCP, until it is told to end."""
    import asyncio
    from contextlib import ExitStack

    try:
        from bridges.sunspec.emulator import PortTaken
        from scenarios.sunspec_emulator import NoEmulator, by_kind, of_scenario, serve
    except ImportError:
        fail(2, "sunspec-emulator needs pymodbus and pysunspec2: pip install 'gridpace[sunspec]'")
    try:
        if file is None:
            sun = 1.0 if drive is None else drive
            devices = by_kind(kind, units, p_mw=p_mw, s_mva=s_mva, e_mwh=e_mwh, drive=sun)
        else:
            from scenarios.check import ScenarioInvalid

            try:
                devices = of_scenario(*loaded(file, changes), names or [], drive)
            except ScenarioInvalid as error:
                fail(2, str(error))
        with ExitStack() as stack:
            book = None if log is None else stack.enter_context(log.open("a", encoding="utf-8"))
            serving = serve(
                devices, host=host, port=port, own_ports=own_ports, every_s=every, log=book, say=say
            )
            asyncio.run(serving)
    except (NoEmulator, PortTaken) as error:
        fail(2, str(error))
    except OSError as error:
        fail(2, f"{log}: cannot be written: {error.strerror or error}")


def device(
    file: File,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Of devices; all if none is given.")
    ] = None,
    *,
    url: Annotated[str, typer.Option(help="mqtt://host:port or mqtts://host:port.")],
    run: Annotated[str, typer.Option(help="Name of the run, the first level of its topics.")],
    gateway: Annotated[
        str | None, typer.Option(metavar="NAME", help="Be all of them behind one gateway, told in batches.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="Authority of the broker's certificate.")] = None,
    cert: Annotated[
        Path | None, typer.Option(help="Client certificate; {client} stands for the device's name.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its key; {client} as above.")] = None,
    protocol: Annotated[str, typer.Option(help="Of MQTT: 5 or 3.1.1.")] = "5",
    every: Annotated[str, typer.Option(help="How often it measures and sends, e.g. 1s.")] = "1s",
    drive: Annotated[
        float | None, typer.Option(help="Sun, wind or schedule, in per unit; the profile's if not given.")
    ] = None,
    log: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON lines of all that it does.")] = None,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Remember the last instruction over a restart.")
    ] = None,
    unsynchronised: Annotated[
        bool, typer.Option("--unsynchronised", help="Do not trust the clock: go by times to live alone.")
    ] = False,
    changes: Sets = [],  # noqa: B006
) -> None:
    """Be devices of a scenario over MQTT, in the place of real ones, until it is told to end."""
    import asyncio
    from contextlib import ExitStack

    from pydantic import ValidationError

    from bridges.bus import BusUnreachable, shown
    from bridges.wire import BadMessage
    from controllers.contract import ControlError
    from scenarios.check import ScenarioInvalid
    from scenarios.device import NoDevice, Task, devices
    from scenarios.schema import MqttBusPart, duration

    draft, scenario = loaded(file, changes)
    try:
        bus = MqttBusPart.model_validate(
            {
                "kind": "mqtt",
                "url": url,
                "protocol": protocol,
                "ca_file": ca,
                "cert_file": cert,
                "key_file": key,
            }
        )
        task = Task(
            names=tuple(names or ()),
            bus=bus,
            run=run,
            gateway=gateway,
            every_s=duration(every).total_seconds(),
            drive=drive,
            synchronised=not unsynchronised,
        )
        with ExitStack() as stack:
            book = None if log is None else stack.enter_context(log.open("a", encoding="utf-8"))
            asyncio.run(devices(draft, scenario, task, log=book, state=state, say=say))
    except ValidationError as error:
        options = {"ca_file": "--ca", "cert_file": "--cert", "key_file": "--key"}
        for problem in error.errors():
            place = str(problem["loc"][-1]) if problem["loc"] else "url"
            advice = problem["msg"].removeprefix("Value error, ")
            if place == "url" and problem["loc"]:
                advice = "is no address; write mqtt://host:port or mqtts://host:port, without credentials"
            value = shown(url) if place == "url" else problem["input"]
            typer.echo(f"{options.get(place, f'--{place}')} {value}: {advice}", err=True)
        raise typer.Exit(2) from None
    except (NoDevice, ScenarioInvalid, BadMessage, BusUnreachable, ControlError, ValueError) as error:
        fail(2, str(error))
    except OSError as error:
        fail(2, f"{error.filename or log or state}: cannot be written: {error.strerror or error}")


def operate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run that goes on.")],
    *,
    hold: Annotated[
        list[str], typer.Option(metavar="DEVICE", help="Tell it nothing any more; may be repeated.")
    ] = [],  # noqa: B006
    release: Annotated[
        list[str], typer.Option(metavar="DEVICE", help="Tell it again what holds; may be repeated.")
    ] = [],  # noqa: B006
    url: Annotated[str, typer.Option(help="mqtt://host:port or mqtts://host:port.")],
    ca: Annotated[Path | None, typer.Option(help="Authority of the broker's certificate.")] = None,
    cert: Annotated[
        Path | None, typer.Option(help="Client certificate; {client} stands for operator.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its key; {client} as above.")] = None,
    why: Annotated[str | None, typer.Option(metavar="TEXT", help="For the run's events.")] = None,
    within: Annotated[str, typer.Option(help="How long to wait for the run, e.g. 10s.")] = "10s",
) -> None:
    """Take devices from a run, so that they fall back, or give them back. Exit status 3: it did not hear."""
    import asyncio

    from pydantic import ValidationError

    from bridges.bus import BusUnreachable, shown
    from scenarios.operate import NotHeard, operators_bus
    from scenarios.operate import operate as tell
    from scenarios.schema import MqttBusPart, duration

    if not (hold or release):
        fail(2, "which device? Give --hold DEVICE or --release DEVICE")
    if both := sorted(set(hold) & set(release)):
        fail(2, f"--hold {both[0]} --release {both[0]}: give one of the two")
    files = {"ca_file": ca, "cert_file": cert, "key_file": key}
    try:
        bus = operators_bus(MqttBusPart.model_validate({"kind": "mqtt", "url": url, **files}), run)
        within_s = duration(within).total_seconds()
        held = asyncio.run(tell(bus, run, hold=hold, release=release, why=why, within_s=within_s))
    except ValidationError as error:
        fail(2, f"--url {shown(url)}: {error.errors()[0]['msg'].removeprefix('Value error, ')}")
    except NotHeard as error:
        fail(3, str(error))
    except (BusUnreachable, ValueError) as error:
        fail(2, str(error))
    typer.echo(f"{run} holds {', '.join(held) or 'nobody'}")

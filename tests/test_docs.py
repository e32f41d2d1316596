"""The documentation says what the code does: generated pages, tables of words, examples, commands, links."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from bridges import wire
from bridges.area import AREA_KINDS, area_topic
from bridges.asking import process_topic
from bridges.batch import batch_topic
from bridges.operator import operator_topic
from controllers import Kind, Origin
from controllers.interchange.correction import InterchangeCorrection
from controllers.interchange.dispatch import MicrogridDispatch
from controllers.interchange.prediction import InterchangePrediction
from scenarios import cli
from scenarios.cli import app
from scenarios.report import summary
from scenarios.run import Exit, Result
from scenarios.world import CHILDREN, CONNECTIONS, SHIFTED
from simulators.clock import Overrun
from simulators.devices import Obedience
from simulators.journal import read
from simulators.tables import MEASURED, SCHEMAS, Outcome
from tests.running import do

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = ROOT / "docs" / "examples"


def text(page: str | Path) -> str:
    return (ROOT / page).read_text("utf-8")


def fenced(markdown: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", markdown)


def blocks(page: str | Path, language: str) -> list[str]:
    return fenced(text(page), language)


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level."""
    found = re.search(rf"(?ms)^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text(page))
    assert found, f"{page} has no section {heading!r}"
    return found[1]


def first_column(lines: str) -> list[str]:
    """The words in backquotes that begin the rows of a table."""
    return re.findall(r"(?m)^\| \*?`([^`]+)`\*? \|", lines)


def anchors(page: Path) -> set[str]:
    """What links within a page can name, by the rule of the usual forges."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file) if file else page
        assert linked.exists(), f"{page.name} -> {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} -> {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    folders = "controllers|simulators|bridges|scenarios|benchmarks|docs|docker"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", page.read_text("utf-8")):
        assert (ROOT / name).is_file(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_ones_that_gridpace_takes(page: Path) -> None:
    group: Any = get_command(app)
    typed = "".join(blocks(page, "console") + blocks(page, "sh"))
    for line in re.findall(r"(?m)(?:^|&& )(?:\$ )?(?:\.venv/bin/)?gridpace (.+)$", typed):
        name, *rest = shlex.split(line)
        assert name in group.commands, line
        group.commands[name].make_context(name, rest)


def test_the_page_on_scenarios_is_the_schema() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_scenario.py"))["page"]
    assert text("docs/scenario.md") == page(), "run: python docs/make_scenario.py"


@pytest.mark.parametrize("table", SCHEMAS)
def test_the_page_on_tables_has_every_column(table: str) -> None:
    said = section("docs/tables.md", f"`{table}`")
    assert first_column(said) == SCHEMAS[table].names
    italic = re.findall(r"(?m)^\| \*`([^`]+)`\* \|", said)
    assert italic == [field.name for field in SCHEMAS[table] if field.nullable]
    if table == "steps":
        assert set(re.findall(r"`(\w+)`\*? \|[^|]*\(\*m\*\)", said)) == set(MEASURED)


def test_the_readme_names_every_table_of_a_run() -> None:
    (tables,) = re.findall(r"(?s)A folder with (.*?) as\s+Parquet", section("README.md", "What a run leaves"))
    assert sorted(re.findall(r"`(\w+)`", tables)) == sorted(SCHEMAS)


EVENT_SOURCES = ("controllers", "simulators", "bridges", "scenarios")
TELLS = {"_event", "event", "record", "note", "_lost"}
"""Names of what takes an event's word among its first two arguments."""


def event_words(source: str) -> set[str]:
    """Words that code gives to events, and outcomes of exceptions, which are such words."""
    found: set[str] = set()
    for scope in ast.walk(ast.parse(source)):
        if isinstance(scope, ast.ClassDef):
            for line in scope.body:
                if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
                    targets = line.targets if isinstance(line, ast.Assign) else [line.target]
                    if any(isinstance(target, ast.Name) and target.id == "outcome" for target in targets):
                        found |= constants(line.value)
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assigned: dict[str, set[str]] = {}
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        assigned.setdefault(target.id, set()).update(constants(node.value))
        for node in ast.walk(scope):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", None) in TELLS:
                for argument in node.args[:2]:
                    named = assigned.get(argument.id, set()) if isinstance(argument, ast.Name) else set()
                    found |= constants(argument) | named
    return found


def constants(value: ast.expr) -> set[str]:
    """The texts that an expression may be."""
    if isinstance(value, ast.IfExp):
        return constants(value.body) | constants(value.orelse)
    return {value.value} if isinstance(value, ast.Constant) and isinstance(value.value, str) else set()


def test_the_words_of_events_are_found_in_code() -> None:
    assert event_words(
        "class Gone(Error):\n    outcome: str = 'gone'\n"
        "class Went(Gone):\n    outcome = 'went'\n"
        "def f(self):\n    what = 'a' if 1 else 'b'\n    self._event(t, what, why='no')\n"
        "    self._event(t, 'c' if 1 else 'd')\n    self._events.record(t, 'e', 'no')\n    other('no', 'no')"
    ) == {"gone", "went", "a", "b", "c", "d", "e"}


def test_the_page_on_tables_has_every_event() -> None:
    files = [file for folder in EVENT_SOURCES for file in (ROOT / folder).rglob("*.py")]
    told = set().union(*(event_words(file.read_text("utf-8")) for file in files))
    rows = re.findall(r"(?m)^\| (`.*?) \|", section("docs/tables.md", "Events"))
    listed = [word for row in rows for word in re.findall(r"`([^`]+)`", row)]
    assert sorted(listed) == sorted({*told, "what"})  # the heading of its column


def test_the_command_lines_module_lists_its_commands() -> None:
    group: Any = get_command(app)
    first = (cli.__doc__ or "").split("\n\n")[0]
    assert set(re.findall(r"`(?:gridpace )?([\w-]+)`", first)) == set(group.commands)


@pytest.mark.parametrize(
    ("heading", "words"),
    [
        ("Words for who decided", Origin),
        ("Words for what a device goes by", Obedience),
        ("Words for what became of an instruction", Outcome),
    ],
)
def test_the_glossary_has_every_word(heading: str, words: type[StrEnum]) -> None:
    assert first_column(section("docs/glossary.md", heading)) == [word.value for word in words]


def test_kinds_of_regions_and_overrun_policies_are_complete() -> None:
    (kinds,) = re.findall(r"(?m)^\| `kind` \| (.*) \|$", section("docs/tables.md", "`regions`"))
    assert re.split(r", | or ", kinds) == [kind.value for kind in Kind]
    assert set(first_column(section("README.md", "Clocks").replace(" (default)", ""))) == {
        "clock.overrun",
        *(policy.value for policy in Overrun),
    }


def edges(diagram: str) -> Iterator[tuple[str, str, str, bool]]:
    """(from, to, attribute, whether it acts in the next step)"""
    for line in diagram.splitlines():
        within = re.fullmatch(r"\s*(\w+) -- (\w+) --> ([\w& ]+)", line)
        later = re.fullmatch(r"\s*(\w+) -\. (\w+) \.-> ([\w& ]+)", line)
        if found := within or later:
            for target in found[3].split(" & "):
                yield found[1], target, found[2], later is not None


def test_the_picture_of_a_step_is_the_wiring() -> None:
    (diagram,) = fenced(section("docs/design.md", "One step"), "mermaid")
    wired = {(a, b, name, False) for a, b, names in CONNECTIONS for name in names}
    wired |= {(a, b, name, False) for a, b, name in CHILDREN}
    wired |= {(a, b, name, True) for a, b, name, _ in SHIFTED}
    assert set(edges(diagram)) == wired


def test_the_messages_on_the_page_are_messages() -> None:
    told, answer, beat = (block.encode() for block in blocks("docs/wire.md", "json"))
    message = wire.decode(told, wire.SetpointMessage)
    assert wire.device_topic(message.run, message.area, message.der, "ack") in text("docs/wire.md")
    said = wire.decode(answer, wire.Ack)
    assert (said.epoch, said.seq) == (message.epoch, message.seq)
    assert isinstance(wire.decode_control(beat), wire.Heartbeat)
    (by_hand,) = re.findall(r"-m '(\{.*?\})'", text("docs/wire.md"))
    assert wire.decode(by_hand.encode(), wire.Ack) == said
    (leaves,) = re.findall(r'`(\{"state": "offline".*?\})`', text("docs/wire.md"))
    assert isinstance(wire.decode_control(leaves.encode()), wire.Offline)


def test_the_topics_on_the_page_are_the_topics() -> None:
    named = set(re.findall(r"(?m)^\| `(gridpace/v1/[^`]+)` \|", text("docs/wire.md")))
    made = {
        wire.device_topic("RUN", "AREA", "DER", what).replace("RUN", "{run}").replace("AREA", "{area}")
        for what in ("setpoint", "ack", "meas", "state")
    }
    gateway = {wire.device_topic("RUN", "AREA", "GW", what) for what in ("batch-ack", "batch-meas")}
    gateway.add(batch_topic("RUN", "AREA", "GW", 0).removesuffix("0") + "{part}")
    for name in gateway:
        made.add(name.replace("RUN", "{run}").replace("AREA", "{area}").replace("GW", "{gateway}"))
    made |= {area_topic("RUN", "MG", kind).replace("RUN", "{run}") for kind in AREA_KINDS}
    made |= {
        process_topic("RUN", "PROCESS", what).replace("RUN", "{run}") + part
        for what, part in (("ask", "/{part}"), ("answer", "/{part}"), ("state", ""))
    }
    made |= {topic("RUN").replace("RUN", "{run}") for topic in (wire.control_topic, operator_topic)}
    for word, meant in (("DER", "{der}"), ("MG", "{microgrid}"), ("PROCESS", "{process}")):
        made = {name.replace(word, meant) for name in made}
    assert named == made


def test_the_readme_shows_the_example_as_it_is() -> None:
    (code,) = blocks("README.md", "python")
    assert code in (EXAMPLES / "no_export.py").read_text("utf-8")
    (scenario,) = blocks("README.md", "yaml")
    assert scenario in (EXAMPLES / "no-export.yaml").read_text("utf-8")


def test_the_readme_installs_extras_that_exist() -> None:
    extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
    for page in PAGES:
        for named in re.findall(r"pip install '\.\[([\w,]+)\]'", page.read_text("utf-8")):
            assert set(named.split(",")) <= extras.keys()


@pytest.mark.parametrize("cls", [InterchangePrediction, InterchangeCorrection, MicrogridDispatch])
def test_the_page_on_interchange_has_every_option_with_its_default(cls: type[Any]) -> None:
    table = re.search(rf"(?ms)^### `{cls.__name__}`\n(.*?)(?=^##)", text("docs/interchange.md"))
    assert table
    said = re.findall(r"(?m)^\| `(\w+)` \| ([^|]+) \|", table[1])
    assert len(dict(said)) == len(said)
    taken = {}
    for one in fields(cls):
        if one.init and one.name != "site":
            default = one.default if one.default_factory is MISSING else one.default_factory()
            word = "-" if default is None else f"`{json.dumps(default)}`".replace('"', "")
            taken[one.name] = word
    assert dict(said) == taken


def test_the_page_on_interchange_has_every_equation_of_the_models() -> None:
    page = text("docs/interchange.md")
    programs = section("docs/interchange.md", "The prediction (DPICP)")
    programs += section("docs/interchange.md", "The correction (DPICC)")
    assert re.findall(r"(?m)^\((A\d+)\)  ", programs) == [f"A{n}" for n in range(1, 21)]
    for module in ("microgrid_model", "correction_rows"):
        symbols = set(re.findall(r"# \((A\d+)\)", text(f"controllers/interchange/{module}.py")))
        assert symbols
        assert all(f"({symbol})" in page for symbol in symbols)


async def test_the_page_on_interchange_shows_the_figures_of_a_run(tmp_path: Path) -> None:
    """To the digits that are shown but for the last: other versions of the numerical libraries move those."""
    result = await do("ieee33-interchange", tmp_path)
    made = runpy.run_path(str(ROOT / "docs" / "make_interchange.py"))["figures"](result.directory)
    (shown,) = re.findall(r"(?s)<!-- figures -->\n(.*?)<!-- end of figures -->", text("docs/interchange.md"))
    now, then = ([row.split("|")[1:-1] for row in table.splitlines()] for table in (made, shown))
    assert [row[0] for row in now] == [row[0] for row in then]
    assert now[:2] == then[:2]
    for new, old in zip(now[2:], then[2:], strict=True):
        assert [float(x) for x in old[1:]] == pytest.approx([float(x) for x in new[1:]], abs=0.05), (
            "run: python docs/make_interchange.py"
        )
    readme = text("README.md")
    for microgrid in summary(result.directory).microgrids:
        (row,) = re.findall(rf"(?m)^{microgrid.name} +(.*)$", readme)
        numbers = (microgrid.offered_mwh, microgrid.accepted_mwh, microgrid.sold_mwh, microgrid.bought_mwh)
        assert [float(x) for x in row.split()[:4]] == pytest.approx(numbers, abs=0.05)


async def test_the_example_keeps_the_import_that_it_promises(tmp_path: Path) -> None:
    result = await do(EXAMPLES / "no-export.yaml", tmp_path)
    assert result.exit is Exit.HELD, result.why
    branches = read(result.directory, "branches").to_pylist()
    imported = [row["p_mw"] for row in branches if row["branch"] == "line:0"]
    assert len(imported) == 12
    assert min(imported) >= 0.2
    devices = read(result.directory, "devices").to_pylist()
    assert any(row["state"] == "limited" for row in devices)  # it had something to keep back


async def test_the_example_says_when_the_loads_consume_too_little(tmp_path: Path) -> None:
    result = await do(EXAMPLES / "no-export.yaml", tmp_path, "controllers.dso.options.margin_mw=50")
    assert result.exit is Exit.FAILED
    events = [json.loads(line) for line in (result.directory / "events.jsonl").read_text().splitlines()]
    assert len(events) == 12
    assert all(event["what"] == "infeasible" and "lower margin_mw" in event["why"] for event in events)


async def test_the_scenario_of_the_tutorial_runs(tmp_path: Path) -> None:
    (scenario,) = blocks("docs/tutorial.md", "yaml")
    (tmp_path / "afternoon.yaml").write_text(scenario, "utf-8")
    result: Result = await do(tmp_path / "afternoon.yaml", tmp_path / "runs")
    assert result.exit is Exit.HELD, [verdict.sentence for verdict in result.verdicts]


async def test_the_python_of_the_tutorial_reads_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await do("ieee33-quick", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/tutorial.md", "python")
    exec(compile(code, "tutorial", "exec"), {})
    printed = capsys.readouterr().out
    assert "pv24" in printed
    assert "load:0" not in printed


def test_wrong_values_of_the_tutorial_are_refused_in_those_words(capsys: pytest.CaptureFixture[str]) -> None:
    shown = next(b for b in blocks("docs/tutorial.md", "console") if "problem(s)" in b)
    command, *expected = shown.strip().splitlines()
    group: Any = get_command(app)
    with pytest.raises(SystemExit) as ended:
        group.main(shlex.split(command)[2:], prog_name="gridpace")
    assert ended.value.code == 2
    printed = capsys.readouterr().err.splitlines()
    assert [line.strip() for line in printed if line.strip()] == expected

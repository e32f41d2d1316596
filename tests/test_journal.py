"""The run's journal: what is appended comes back, whatever happens to the process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simulators import journal as journal_module
from simulators.journal import JOURNAL, PARTS, Journal, NoTables, batches, finish, finished_steps, read
from simulators.tables import MEASURED, SCHEMAS, Outcome, struct

START = datetime(2026, 6, 21, tzinfo=UTC)
EVERY = timedelta(minutes=5)
BUSES = pa.array(["bus:1", "bus:2", "bus:3"])
DEVICES = ["der1", "der2"]


def at(step: int) -> datetime:
    return START + step * EVERY


def rows_of(step: int, wall: float = 0.0) -> dict[str, Any]:
    """One step of a small run, every table in it."""
    now, then = at(step), at(step + 1)
    numbers = np.random.default_rng(step)
    coming = np.datetime64(now.replace(tzinfo=None), "us") + np.arange(1, 5) * np.timedelta64(300, "s")
    return {
        "steps": {
            "step": step,
            "time": now,
            "planned_at": now + timedelta(seconds=wall),
            "started_at": now + timedelta(seconds=wall),
            "lateness_ms": wall,
            "solve_ms": 1.5 + wall,
            "controller": "dso",
            "origin": "optimal",
        },
        "buses": {"time": now, "bus": BUSES, "v_pu": numbers.normal(1.0, 0.01, 3)},
        "branches": {
            "time": now,
            "branch": ["line:0"],
            "p_mw": [1.25],
            "q_mvar": [-0.5],
            "loading_percent": [np.nan],
        },
        "devices": {
            "time": now,
            "device": DEVICES,
            "p_mw": numbers.normal(size=2),
            "e_mwh": [None, 0.4],
            "curtailed_mw": 0.0,
            "state": ["limited", None],
        },
        "field": {
            "time": now,
            "device": DEVICES,
            "held": [False, step % 3 == 0],
            "measured_at": [now, None],
            "silent_since": [None, at(0)],
            "assumed_mw": [None, 0.25],
            "divergence_mw": numbers.normal(size=2),
        },
        "regulators": {"time": now, "regulator": ["oltc", "cb1"], "position": [-3, step]},
        "exchanges": {
            "time": now,
            "microgrid": ["mg1", "mg2"],
            "connected": [True, step % 2 == 0],
            "p_mw": numbers.normal(size=2),
            "cost": [3.5, None],
        },
        "fairness": {
            "issued_at": now,
            "valid_from": then,
            "controller": "dso",
            **dict.fromkeys(("export_mw", "import_mw", "area_mva2"), 0.5 + step),
            **dict.fromkeys(("jain_export", "jain_import", "least_export", "least_import"), 0.25),
            "price": [0.125],
        },
        "iterations": {
            "time": now,
            "controller": "dso",
            "number": [1, 2],
            "phase": "cuts",
            "cuts": [6, 12],
            "lower": [1.5, 1.75 + step],
            "upper": [None, 2.5 + step],
        },
        "regions": {
            "issued_at": now,
            "valid_from": then,
            "valid_until": at(step + 3),
            "controller": "dso",
            "target": DEVICES,
            "kind": "envelope",
            "seq": [2 * step, 2 * step + 1],
            "axes": [("p_mw", "q_mvar"), ("p_mw",)],
            "A": [np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), np.array([[1.0]])],
            "b": [np.array([1.0, 2.0, 3.0]), np.array([4.0])],
            "binding": "upper voltage at bus:3",
        },
        "setpoints": {
            "seq": [2 * step, 2 * step + 1],
            "epoch": 1,
            "device": DEVICES,
            "issued_at": now,
            "valid_until": at(step + 3),
            "sent_at": now,
            "outcome": Outcome.SENT,
        },
        "forecasts": {
            "issued_at": now,
            "time": np.repeat(coming, 2),
            "name": DEVICES * 4,
            "mean_mw": np.arange(8.0),
            "std_mw": numbers.random(8),
        },
    }


def record(run: Path, steps: int, **options: int) -> None:
    with Journal(run, **options) as journal:
        for step in range(steps):
            journal.append(step, rows_of(step))


def test_the_columns_are_those_of_the_run_directory() -> None:
    columns = {
        "steps": "step, time, planned_at, started_at, lateness_ms, solve_ms, power_flow_ms, publish_ms,"
        " controller, origin",
        "buses": "time, bus, v_pu",
        "branches": "time, branch, p_mw, q_mvar, loading_percent",
        "devices": "time, device, p_mw, q_mvar, e_mwh, available_mw, curtailed_mw, state",
        "field": "time, device, held, measured_at, silent_since, assumed_mw, assumed_mvar, twin_p_mw,"
        " twin_q_mvar, twin_e_mwh, divergence_mw, divergence_mvar, divergence_mwh",
        "regulators": "time, regulator, position",
        "exchanges": "time, microgrid, connected, p_mw, q_mvar, planned_mw, pic_low_mw, pic_high_mw,"
        " aic_low_mw, aic_high_mw, unserved_mw, unbalanced_mw, heat_mw, boiler_mw, price_per_mwh, cost",
        "regions": "issued_at, valid_from, valid_until, controller, target, kind, seq, axes, A, b,"
        " binding, worst_v_pu, worst_loading_percent, power_flows",
        "setpoints": "seq, epoch, device, issued_at, valid_until, p_mw, q_mvar,"
        " sent_at, acked_at, received_at, applied_at, refused_at, superseded_at, expired_at, fallback_at,"
        " reason, outcome",
        "forecasts": "issued_at, time, name, mean_mw, std_mw",
        "fairness": "issued_at, valid_from, controller, export_mw, import_mw, area_mva2, jain_export,"
        " jain_import, least_export, least_import, price, ledger_jain",
        "iterations": "time, controller, number, phase, cuts, lower, upper, gap, ended",
    }
    assert {table: ", ".join(schema.names) for table, schema in SCHEMAS.items()} == columns
    assert set(MEASURED) < set(SCHEMAS["steps"].names)


@pytest.mark.parametrize("seal_every", [1, 3, 1000])
def test_what_is_appended_comes_back(tmp_path: Path, seal_every: int) -> None:
    record(tmp_path, 7, seal_every=seal_every)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{table}.parquet" for table in SCHEMAS)
    for table in SCHEMAS:
        rows = read(tmp_path, table)
        assert rows.schema.equals(SCHEMAS[table])
        expected = pa.concat_tables(
            [pa.Table.from_struct_array(struct(table, rows_of(step)[table])) for step in range(7)]
        )
        assert rows.to_pylist() == expected.to_pylist()
    assert finished_steps(tmp_path) == 7


def test_values_keep_shape_unit_and_gaps(tmp_path: Path) -> None:
    record(tmp_path, 1)
    region = read(tmp_path, "regions").to_pylist()[0]
    assert region["A"] == [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]
    assert region["b"] == [1.0, 2.0, 3.0]
    assert region["axes"] == ["p_mw", "q_mvar"]
    assert region["valid_until"] == at(3)
    assert region["power_flows"] is None
    assert read(tmp_path, "branches").to_pylist()[0]["loading_percent"] is None  # NaN is never stored
    assert read(tmp_path, "devices")["e_mwh"].to_pylist() == [None, 0.4]
    assert read(tmp_path, "forecasts")["time"].to_pylist()[::2] == [at(i) for i in (1, 2, 3, 4)]


def test_a_record_batch_is_as_good_as_columns(tmp_path: Path) -> None:
    batch = pa.record_batch({"time": pa.array([at(0)] * 3), "bus": BUSES, "v_pu": [1.0, np.nan, 0.99]})
    with Journal(tmp_path) as journal:
        journal.append(0, {"buses": batch})
    assert read(tmp_path, "buses")["v_pu"].to_pylist() == [1.0, None, 0.99]


def test_chosen_columns_alone_are_read(tmp_path: Path) -> None:
    record(tmp_path, 2)
    assert read(tmp_path, "buses", ["bus", "v_pu"]).schema.names == ["bus", "v_pu"]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"busses": {}}, "no table.*busses.*buses"),
        ({"buses": {"time": at(0), "bus": BUSES, "v": [1.0] * 3}}, "buses: no column.*'v'.*v_pu"),
        ({"buses": {"time": at(0), "bus": BUSES, "v_pu": [1.0]}}, r"buses\.v_pu has 1 rows.*3"),
        ({"buses": {"bus": BUSES, "v_pu": [1.0] * 3}}, r"buses\.time is null in 3 of 3"),
        ({"buses": {"time": datetime(2026, 1, 1), "bus": BUSES}}, r"buses\.time.*no time zone"),
        ({"buses": {"time": [datetime(2026, 1, 1)], "bus": ["b"]}}, r"buses\.time.*no time zone"),
        (
            {"setpoints": {**rows_of(0)["setpoints"], "outcome": "lost"}},
            r"setpoints\.outcome.*lost.*superseded",
        ),
    ],
)
def test_a_wrong_step_is_refused_and_says_why(tmp_path: Path, tables: dict[str, Any], message: str) -> None:
    with Journal(tmp_path) as journal:
        journal.append(0, rows_of(0))
        with pytest.raises(ValueError, match=message):
            journal.append(1, tables)
        journal.append(1, rows_of(1))
    assert finished_steps(tmp_path) == 2


def test_steps_go_forward_and_nothing_follows_the_close(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(4, rows_of(4))
        with pytest.raises(ValueError, match="step 3 after step 4"):
            journal.append(3, rows_of(3))
    with pytest.raises(ValueError, match="closed"):
        journal.append(5, rows_of(5))


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    record(tmp_path, 1)
    with pytest.raises(FileExistsError, match="new folder"):
        Journal(tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoTables, match="nothing was recorded"):
        read(tmp_path, "buses")
    with pytest.raises(ValueError, match="no table 'busses'"):
        read(tmp_path, "busses")


def test_unfinished_and_finished_read_the_same(tmp_path: Path) -> None:
    journal = Journal(tmp_path, seal_every=3)
    for step in range(8):
        journal.append(step, rows_of(step))
    before = {table: read(tmp_path, table).to_pylist() for table in SCHEMAS}
    assert finished_steps(tmp_path) == 8
    journal.close()
    assert {table: read(tmp_path, table).to_pylist() for table in SCHEMAS} == before


def test_a_torn_last_batch_costs_only_itself(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(0, rows_of(0))
    whole = (tmp_path / JOURNAL).stat().st_size
    journal.append(1, rows_of(1))
    assert finished_steps(tmp_path) == 2
    for end in range((tmp_path / JOURNAL).stat().st_size - 1, whole - 1, -1):
        os.truncate(tmp_path / JOURNAL, end)
        assert finished_steps(tmp_path) == 1, f"cut at byte {end}"
    assert read(tmp_path, "buses").num_rows == 3


def test_a_full_disk_leaves_the_steps_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.append(0, rows_of(0))
    write = os.write
    full = [False]

    def half(file: int, data: memoryview) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        full[0] = True
        return write(file, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(journal_module.os, "write", half)
        with pytest.raises(OSError, match="No space"):
            journal.append(1, rows_of(1))
    journal.append(1, rows_of(1))
    journal.close()
    assert read(tmp_path, "steps")["step"].to_pylist() == [0, 1]


KILLED = """
import sys
from pathlib import Path
from simulators.journal import Journal
from tests.test_journal import rows_of
journal = Journal(Path(sys.argv[1]), seal_every=4)
for step in range(1_000_000):
    journal.append(step, rows_of(step))
    print(step, flush=True)
"""


def test_a_killed_process_loses_no_appended_step(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if len(lines) == 18:
                process.kill()
        assert process.wait() == -signal.SIGKILL
    acknowledged = int(lines[-1] if lines[-1].endswith("\n") else lines[-2])
    steps = read(tmp_path, "steps")["step"].to_pylist()
    assert steps == list(range(len(steps)))
    assert len(steps) >= acknowledged + 1
    assert read(tmp_path, "buses").num_rows == 3 * len(steps)
    finish(tmp_path)
    assert finished_steps(tmp_path) == len(steps)


@pytest.mark.parametrize("moment", range(1, 18))
def test_a_kill_while_sealing_keeps_each_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The rename is the only instant that counts: stop before each of them in turn."""
    journal = Journal(tmp_path, seal_every=3)
    renames = 0
    replace = Path.replace

    def stops(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames == moment:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stops)
    done = 0

    def run() -> None:
        nonlocal done
        for step in range(20):
            journal.append(step, rows_of(step))
            done += 1

    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    assert read(tmp_path, "steps")["step"].to_pylist() == list(range(done))
    assert read(tmp_path, "setpoints")["seq"].to_pylist() == list(range(2 * done))
    journal.append(done, rows_of(done))
    journal.close()
    assert read(tmp_path, "steps")["step"].to_pylist() == list(range(done + 1))


@pytest.mark.parametrize("moment", range(1, 8))
def test_a_kill_while_finishing_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    whole = tmp_path / "whole"
    broken = tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    record(whole, 5, seal_every=2)
    journal = Journal(broken, seal_every=2)
    for step in range(5):
        journal.append(step, rows_of(step))
    renames = 0
    replace = Path.replace

    def stops(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames == moment:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stops)
    with pytest.raises(KeyboardInterrupt):
        journal.close()
    monkeypatch.undo()
    assert finished_steps(broken) == 5
    finish(broken)
    assert {p.name: p.read_bytes() for p in broken.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }


def test_equal_input_gives_equal_bytes_and_durations_stay_in_steps(tmp_path: Path) -> None:
    for name, wall in (("a", 0.0), ("b", 0.0), ("later", 3.0)):
        (tmp_path / name).mkdir()
        with Journal(tmp_path / name, seal_every=3) as journal:
            for step in range(8):
                journal.append(step, rows_of(step, wall))
    for table in SCHEMAS:
        a, b, later = ((tmp_path / name / f"{table}.parquet").read_bytes() for name in ("a", "b", "later"))
        assert a == b
        assert (a == later) == (table != "steps")
    kept = [name for name in SCHEMAS["steps"].names if name not in MEASURED]
    assert read(tmp_path / "a", "steps", kept).equals(read(tmp_path / "later", "steps", kept))


def test_the_journal_stays_small(tmp_path: Path) -> None:
    journal = Journal(tmp_path, seal_every=10)
    sizes = []
    for step in range(95):
        journal.append(step, rows_of(step))
        sizes.append((tmp_path / JOURNAL).stat().st_size)
    assert len(list((tmp_path / PARTS).glob("buses-*.parquet"))) == 9
    assert max(sizes[10:]) <= max(sizes[:10]) * 1.01
    journal.close()
    # Row groups as the parts were: nothing was gathered to write the whole.
    assert pq.ParquetFile(tmp_path / "buses.parquet").num_row_groups == 10
    assert not (tmp_path / PARTS).exists()


def test_large_steps_are_sealed_by_their_rows(tmp_path: Path) -> None:
    journal = Journal(tmp_path, seal_rows=60)
    for step in range(9):
        journal.append(step, rows_of(step))  # 16 rows that count
    assert len(list((tmp_path / PARTS).glob("forecasts-*.parquet"))) == 2
    journal.close()
    assert finished_steps(tmp_path) == 9


def known(step: int, seq: int, outcome: Outcome, **more: Any) -> dict[str, Any]:
    """A setpoint issued at `step`, valid for three."""
    return {
        "seq": seq,
        "epoch": 1,
        "device": "der1",
        "issued_at": at(step),
        "valid_until": at(step + 3),
        "p_mw": 0.5,
        "outcome": outcome,
        **more,
    }


@pytest.mark.parametrize("seal_every", [1, 2, 5, 1000])
@pytest.mark.parametrize("finished", [True, False])
def test_a_setpoint_keeps_what_was_known_last(tmp_path: Path, seal_every: int, finished: bool) -> None:
    """One is applied a step later, one long after its validity, one is never heard of again."""
    journal = Journal(tmp_path, seal_every=seal_every)
    for step in range(20):
        journal.append(step, {"steps": rows_of(step)["steps"], "setpoints": known(step, step, Outcome.SENT)})
        if step >= 1 and step - 1 not in (4, 9):
            acked = known(step - 1, step - 1, Outcome.APPLIED, acked_at=at(step), applied_at=at(step))
            journal.append(step, {"setpoints": acked})
        if step == 18:
            journal.append(step, {"setpoints": known(4, 4, Outcome.REFUSED, acked_at=at(18))})
    if finished:
        journal.close()
    rows = read(tmp_path, "setpoints").to_pylist()
    assert [row["seq"] for row in rows] == list(range(20))
    assert {row["seq"]: row["outcome"] for row in rows if row["outcome"] != "applied"} == {
        4: "refused",
        9: "sent",
        19: "sent",
    }
    assert rows[4]["acked_at"] == at(18)
    assert rows[5]["applied_at"] == at(6)


def test_only_outstanding_setpoints_are_held(tmp_path: Path) -> None:
    """Row groups follow the parts: what is no longer valid leaves with its part."""
    with Journal(tmp_path, seal_every=10) as journal:
        for step in range(100):
            journal.append(step, {"setpoints": known(step, step, Outcome.SENT)})
    file = pq.ParquetFile(tmp_path / "setpoints.parquet")
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sum(sizes) == 100
    assert max(sizes) == 10


def test_a_new_epoch_may_count_from_zero_again(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(0, {"setpoints": known(0, 0, Outcome.SENT)})
        journal.append(1, {"setpoints": known(1, 0, Outcome.APPLIED) | {"epoch": 2}})
    rows = read(tmp_path, "setpoints").to_pylist()
    assert [(row["epoch"], row["outcome"]) for row in rows] == [(1, "sent"), (2, "applied")]


def test_pieces_are_bounded(tmp_path: Path) -> None:
    record(tmp_path, 30, seal_every=10)
    assert max(len(piece) for piece in batches(tmp_path, "buses")) <= 3 * 30
    assert sum(len(piece) for piece in batches(tmp_path, "buses")) == 3 * 30

"""The picture of a run: what it shows, and what it says when it cannot be drawn."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.picture import NoPicture, _chosen, _traces, draw
from scenarios.run_directory import NotARun, RunDirectory
from simulators.journal import Journal

START = datetime(2026, 6, 21, 12, tzinfo=UTC)
STEP = timedelta(minutes=5)
BOX = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


def make_run(root: Path, *, voltages: bool = True, steps: int = 4) -> Path:
    """A run of a PV inverter that is limited to 0.5 MW from step 1 to step 2, and one load."""
    directory = RunDirectory.create(root, "small", START)
    scenario: dict[str, Any] = {
        "name": "small",
        "seed": 1,
        "steps": steps,
        "clock": {"mode": "fast"},
        "grid": {"limits": {"v_pu": [0.95, 1.05]}},
        "devices": [{"name": "sun", "kind": "pv-inverter"}],
    }
    directory.begin(scenario=scenario, now=START)
    with Journal(directory.path) as journal:
        for step in range(steps):
            time = START + step * STEP
            limited = step in (1, 2)
            tables: dict[str, Any] = {
                "steps": {"step": [step], "time": time},
                "buses": {"time": time, "bus": ["0", "1"], "v_pu": [1.0, 1.02 if voltages else None]},
                "devices": {
                    "time": time,
                    "device": ["sun", "load:0"],
                    "p_mw": [0.5 if limited else 0.8, -0.3],
                    "q_mvar": [0.0, -0.1],
                    "available_mw": [0.8, None],
                    "curtailed_mw": [0.3 if limited else 0.0, None],
                    "state": ["limited" if limited else "failsafe", "uncontrolled"],
                },
            }
            if not voltages:
                del tables["buses"]
            if step == 0:
                tables["regions"] = {
                    "issued_at": time,
                    "valid_from": time + STEP,
                    "valid_until": time + 3 * STEP,
                    "controller": "dso",
                    "target": ["sun"],
                    "kind": "envelope",
                    "seq": [1],
                    "axes": [["p_mw", "q_mvar"]],
                    "A": [BOX],
                    "b": [np.array([0.5, 0.2, 0.0, 0.0])],
                }
            journal.append(step, tables)
    return directory.path


def test_traces_show_an_envelope_only_while_it_is_valid(tmp_path: Path) -> None:
    traces, loads = _traces(make_run(tmp_path), 4)
    assert list(traces) == ["sun"]  # a load that nobody controls is no device
    np.testing.assert_allclose(traces["sun"].p_mw, [0.8, 0.5, 0.5, 0.8])
    np.testing.assert_allclose(traces["sun"].high_mw, [np.nan, 0.5, 0.5, np.nan])
    np.testing.assert_allclose(traces["sun"].low_mw, [np.nan, -0.2, -0.2, np.nan])
    np.testing.assert_allclose(loads, [-0.3] * 4)
    assert traces["sun"].limited == 2


def test_devices_of_different_kinds_come_first(tmp_path: Path) -> None:
    traces, _ = _traces(make_run(tmp_path), 4)
    some = traces["sun"]
    kinds = {"a": "pv", "b": "pv", "c": "battery", "d": "pv"}
    assert _chosen(dict.fromkeys("abcd", some), kinds) == ["a", "c", "b"]


def test_a_picture_has_the_promised_size(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    file = tmp_path / "run.png"
    draw(make_run(tmp_path), file)
    pixels = image.imread(file)
    assert pixels.shape[:2] == (800, 1200)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50  # it is not blank


def test_a_run_without_devices_has_its_voltages_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("scenarios.picture._traces", lambda *_: ({}, np.zeros(4)))
    draw(make_run(tmp_path), tmp_path / "run.svg")
    assert (tmp_path / "run.svg").read_text("utf-8").startswith("<?xml")


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NoPicture, match=r"pip install 'gridpace\[plot\]'"):
        draw(run, tmp_path / "run.png")


def test_a_run_without_voltages_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(NoPicture, match="'buses' has no voltage"):
        draw(make_run(tmp_path, voltages=False), tmp_path / "run.png")


def test_a_run_that_recorded_nothing_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = make_run(tmp_path)
    (run / "steps.parquet").unlink()
    with pytest.raises(NoPicture, match="nothing to draw"):
        draw(run, tmp_path / "run.png")


@pytest.mark.parametrize("name", ["run.gifx", "no/such/folder/run.png"])
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(NoPicture, match="cannot write"):
        draw(make_run(tmp_path), tmp_path / name)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotARun):
        draw(tmp_path, tmp_path / "run.png")

"""Every form of `grid.network`, and what is said when it cannot be loaded."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pandapower as pp
import pandapower.networks as pn
import pytest

from scenarios.grids import GridError, bus_of, load_grid
from simulators.network import network_of

DATA = Path(__file__).parents[1] / "scenarios" / "data"

FEEDER = """\
function mpc = feeder
%FEEDER  Three buses in ohm and kW   % with a comment [1 2 3];
mpc.version = '2';
mpc.baseMVA = 10;
%% bus_i type Pd Qd Gs Bs area Vm Va baseKV zone Vmax Vmin
mpc.bus = [ %% (Pd and Qd are specified in kW & kVAr here, converted to MW & MVAr below)
\t1\t3\t0\t0\t0\t0\t1\t1\t0\t11\t1\t1\t1;
\t2\t1\t1000\t600\t0\t0\t1\t1\t0\t11\t1\t1.1\t0.9;  % a comment
\t7\t1\t500\t-100\t0\t0.2\t1\t1\t0\t11\t1\t1.1\t0.9; 4 1 0 0 0 0 1 1 0 11 1 1.1 0.9;
];
mpc.gen = [
\t1\t0\t0\t10\t-10\t1.02\t100\t1\t10\t0;
];
mpc.branch = [  %% (r and x specified in ohms here, converted to p.u. below)
\t1, 2, 0.5, 0.3, 0, 6, 0, 0, 0, 0, 1, -360, 360;
\t2\t7\t1.0\t0.8\t0\t0\t0\t0\t0\t0\t1\t-360\t360;
\t7\t4\t0.1\t0.1\t0\t0\t0\t0\t0\t0\t1\t-360\t360;
\t1\t4\t0.1\t0.1\t0\t0\t0\t0\t0\t0\t0\t-360\t360;
];
mpc.bus_name = {
\t'source 100%';
\t'middle';
\t'end';
\t'stub';
};
%% convert branch impedances from Ohms to p.u.
[PQ, PV, REF, NONE, BUS_I, BUS_TYPE, PD, QD, GS, BS, BUS_AREA, VM, ...
    VA, BASE_KV, ZONE, VMAX, VMIN, LAM_P, LAM_Q, MU_VMAX, MU_VMIN] = idx_bus;
[F_BUS, T_BUS, BR_R, BR_X, BR_B, RATE_A, RATE_B, RATE_C, ...
    TAP, SHIFT, BR_STATUS, PF, QF, PT, QT, MU_SF, MU_ST, ...
    ANGMIN, ANGMAX, MU_ANGMIN, MU_ANGMAX] = idx_brch;
Vbase = mpc.bus(1, BASE_KV) * 1e3;      %% in Volts
Sbase = mpc.baseMVA * 1e6;              %% in VA
mpc.branch(:, [BR_R BR_X]) = mpc.branch(:, [BR_R BR_X]) / (Vbase^2 / Sbase);

%% convert loads from kW to MW
mpc.bus(:, [PD, QD]) = mpc.bus(:, [PD, QD]) / 1e3;
"""


def write(folder, text, name="feeder.m"):
    (folder / name).write_text(text)
    return name


def test_function_of_a_module():
    assert len(load_grid("pandapower.networks:case33bw", Path()).bus) == 33


def test_village():
    net = load_grid("village.json", DATA)
    assert len(net.bus) == 12
    pp.runpp(net, numba=False)
    assert net.res_bus.vm_pu.between(0.95, 1.05).all()
    assert 10 < net.res_line.loading_percent.max() < 60
    assert sorted(net.switch.closed) == [False, True]
    assert net.trafo.tap_pos[0] == 1
    network = network_of(net)
    assert len(network.buses) == 11
    assert np.isfinite(network.rating_mva[[b.startswith(("line", "trafo")) for b in network.branches]]).all()


def test_village_is_what_its_script_makes():
    made = runpy.run_path(str(DATA / "make_village.py"))["village"]()
    assert pp.toolbox.nets_equal(made, load_grid("village.json", DATA))


def test_json_relative_to_the_scenario(tmp_path):
    (tmp_path / "grids").mkdir()
    pp.to_json(pn.case33bw(), str(tmp_path / "grids" / "mine.json"))
    assert len(load_grid("grids/mine.json", tmp_path).line) == 37


def test_simbench():
    pytest.importorskip("simbench")
    net = load_grid("simbench:1-LV-rural1--0-sw", Path())
    assert len(network_of(net).buses) == len(net.bus) - 1


def test_matpower_units_are_converted(tmp_path):
    net = load_grid(write(tmp_path, FEEDER), tmp_path)
    assert net.bus.index.tolist() == [1, 2, 7, 4]
    assert net.bus.name.tolist() == ["source 100%", "middle", "end", "stub"]
    assert net.load.set_index("bus").p_mw.to_dict() == pytest.approx({2: 1.0, 7: 0.5})
    assert net.load.set_index("bus").q_mvar.to_dict() == pytest.approx({2: 0.6, 7: -0.1})
    np.testing.assert_allclose(net.line.r_ohm_per_km, [0.5, 1.0, 0.1, 0.1])
    np.testing.assert_allclose(net.line.x_ohm_per_km, [0.3, 0.8, 0.1, 0.1])
    assert net.line.in_service.tolist() == [True, True, True, False]
    assert net.ext_grid.vm_pu.tolist() == [1.02]
    network = network_of(net)
    assert network.rating_mva[network.branches.index("line:0")] == pytest.approx(6.0)
    assert np.isinf(network.rating_mva[network.branches.index("line:1")])
    p = network.total(["2", "7"], [-1.0, -0.5])
    q = network.total(["2", "7"], [-0.6, 0.1])
    # by hand: pu on 121 ohm/MVA; the 0.2 Mvar capacitor at bus 7 adds 0.2 v to q
    v_2, v_7 = network.v2(p, q)[[network.buses.index(b) for b in ("2", "7")]]
    q_7 = 0.1 + 0.2 * v_7
    assert v_2 == pytest.approx(1.02**2 + 2 / 121 * (0.5 * -1.5 + 0.3 * (-0.6 + q_7)))
    assert v_7 == pytest.approx(v_2 + 2 / 121 * (1.0 * -0.5 + 0.8 * q_7))


def test_matpower_without_conversion_is_per_unit(tmp_path):
    plain = FEEDER.split("%% convert branch")[0]
    net = load_grid(write(tmp_path, plain), tmp_path)
    assert net.line.r_ohm_per_km[0] == pytest.approx(0.5 * 11**2 / 10)
    assert net.load.p_mw[0] == 1000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "/ (Vbase^2 / Sbase);",
            "/ (Vbase^2 / Sbase) * 2;",
            r"'mpc.branch\(:,\[BR_R,BR_X\]\)=.*not understood",
        ),
        ("/ 1e3;\n", "/ 1e6;\n", r"'mpc.bus\(:,\[PD,QD\]\)=.*not understood.*savecase"),
        ("Sbase = mpc.baseMVA * 1e6;", "", "not understood"),
        ("mpc.branch = [", "mpc.lines = [", "no matrix mpc.branch"),
        ("0.5, 0.3, 0, 6,", "0.5, 0.3, 0,", "rows of mpc.branch have different lengths"),
        ("1.02", "V", "mpc.gen holds something that is no number"),
        ("'2'", "'1'", "version '1'"),
        ("\t'stub';\n", "", "3 names for 4 buses"),
        ("mpc.baseMVA = 10;", "", "not understood"),
    ],
)
def test_matpower_is_converted_right_or_refused(tmp_path, old, new, message):
    assert old in FEEDER
    with pytest.raises(GridError, match=message) as refused:
        load_grid(write(tmp_path, FEEDER.replace(old, new)), tmp_path)
    assert "'feeder.m'" in str(refused.value)


def test_case_of_the_matpower_package(tmp_path, monkeypatch):
    data = tmp_path / "matpower" / "data"
    data.mkdir(parents=True)
    (tmp_path / "matpower" / "__init__.py").touch()  # before the installed package, if there is one
    write(data, FEEDER, "case4feeder.m")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "matpower", raising=False)
    assert len(load_grid("matpower:case4feeder", Path()).bus) == 4
    with pytest.raises(GridError, match=r"has no case4feder; did you mean case4feeder\?"):
        load_grid("matpower:case4feder", Path())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pandapower.networks:case33b", r"no function case33b; did you mean case33bw"),
        ("pandapower.netwrks:case33bw", "module pandapower.netwrks cannot be imported"),
        ("os:getcwd", "gives str, not a pandapower net"),
        ("os:sep", "os has no function sep"),
        ("pandapower.networks:mv_oberrhein_", "no function mv_oberrhein_; did you mean mv_oberrhein"),
        ("operator:add", r"add\(\) failed with TypeError"),
        ("missing.json", "missing.json cannot be read.*the folder has village.json"),
        ("missing.m", "cannot be read.*paths start at the scenario's folder"),
        ("make_village.py", "none of the known forms; give a module:function"),
        ("a b:c", "none of the known forms"),
        ("", "none of the known forms"),
    ],
)
def test_what_cannot_be_loaded_is_named(spec, message):
    with pytest.raises(GridError, match=message) as refused:
        load_grid(spec, DATA)
    assert repr(spec) in str(refused.value)


def test_unknown_simbench_code():
    pytest.importorskip("simbench")
    with pytest.raises(GridError, match=r"no grid 1-LV-rural1--9-sw; did you mean 1-LV-rural1--\d-sw"):
        load_grid("simbench:1-LV-rural1--9-sw", Path())


@pytest.mark.parametrize(
    ("spec", "extra"), [("simbench:1-LV-x", "simbench"), ("matpower:case136ma", "matpower")]
)
def test_a_missing_extra_says_how_to_install_it(spec, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, extra, None)  # what the import system takes for not installed
    with pytest.raises(GridError, match=rf"pip install 'gridpace\[{extra}\]'"):
        load_grid(spec, Path())


def test_json_that_is_no_net(tmp_path):
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(GridError, match=r"no pandapower JSON file|gives list"):
        load_grid("list.json", tmp_path)
    with pytest.raises(GridError, match=r"no pandapower JSON file.*to_json"):
        load_grid("broken.json", tmp_path)


def test_json_may_not_name_foreign_code(tmp_path):
    path = tmp_path / "net.json"
    pp.to_json(pn.case33bw(), str(path))
    content = json.loads(path.read_text())
    content["_object"]["line"] |= {"_module": "surprise.inside", "_class": "Popen"}
    path.write_text(json.dumps(content))
    with pytest.raises(GridError, match=r"names classes of surprise.inside, which would be run"):
        load_grid("net.json", tmp_path)


def test_bus_of():
    net = load_grid("village.json", DATA)
    assert bus_of(net, 6) == "6"
    assert bus_of(net, "station lv") == "2"
    assert bus_of(net, "6") == "6"
    net.bus.loc[4, "name"] = "6"
    net.bus.loc[[7, 8], "name"] = "twins"
    with pytest.raises(GridError, match=r"bus '6' may be any of the buses \[4, 6\]"):
        bus_of(net, "6")
    with pytest.raises(GridError, match=r"bus 'twins' may be any of the buses \[7, 8\]"):
        bus_of(net, "twins")
    with pytest.raises(GridError, match=r"bus 'staton lv' is not in the grid; did you mean 'station lv'"):
        bus_of(net, "staton lv")
    with pytest.raises(
        GridError, match=r"bus 99 is not in the grid, whose buses go from 0 to 11; nearest: 11, 10, 9"
    ):
        bus_of(net, 99)
    with pytest.raises(GridError, match="bus True is not in the grid"):
        bus_of(net, True)

"""net_of_case: a MATPOWER case file (`.m`, format version 2) as a pandapower net.

Distribution cases come in ohm and kW, with MATLAB statements at the end that convert them. Those statements
are recognised one by one and obeyed; a file with any other statement is refused, because ignoring it would
give another grid. Columns: MATPOWER User's Manual, appendix B.
"""

from __future__ import annotations

import re
import warnings

import numpy as np
import numpy.typing as npt
from pandapower.auxiliary import pandapowerNet
from pandapower.converter.pypower import from_ppc
from pandapower.pypower import idx_brch, idx_bus

Array = npt.NDArray[np.float64]

TABLES = {"bus": 13, "gen": 10, "branch": 11}
"""Matrices that a case must have, and their least number of columns."""

MATRIX = re.compile(r"mpc\.(\w+)\s*=\s*\[(.*?)\]", re.DOTALL)
CELLS = re.compile(r"mpc\.(\w+)\s*=\s*\{(.*?)\}", re.DOTALL)

SILENT = (
    r"functionmpc=\w+",
    r"function\[[\w,]+\]=\w+",
    r"define_constants",
    r"\[[\w,]+\]=idx_(bus|brch|gen|cost)",
    r"end|return",
)
"""Statements, without spaces, that change nothing."""

BASES = {"Vbase": r"mpc\.bus\(1,BASE_KV\)\*(1e3|1000)", "Sbase": r"mpc\.baseMVA\*(1e6|1000000)"}
OHM = r"mpc\.branch\(:,\[BR_R,?BR_X\]\)=mpc\.branch\(:,\[BR_R,?BR_X\]\)/\(Vbase\^2/Sbase\)"
KILOWATT = r"mpc\.bus\(:,\[PD,?QD\]\)=mpc\.bus\(:,\[PD,?QD\]\)/(1e3|1000)"


class CaseError(ValueError):
    """A case file that cannot be converted faithfully."""


def net_of_case(text: str, f_hz: float = 50.0) -> pandapowerNet:
    """Convert the text of a case file. Buses keep the file's numbers as index, and its `bus_name`s.

    Args:
        text: the file.
        f_hz: frequency; turns susceptances into capacitances, so it changes no result.

    Raises:
        CaseError: a matrix is missing or not numeric, or a statement is not one that is understood.
    """
    code = re.sub(r"\.\.\.[^\n]*\n", " ", "\n".join(_uncommented(line) for line in text.splitlines()))
    matrices = {
        m[1]: _matrix(m[1], m[2]) for m in re.finditer(r"mpc\.(\w+)\s*=\s*\[(.*?)\]", code, re.DOTALL)
    }
    code = re.sub(r"mpc\.\w+\s*=\s*\[.*?\]", "", code, flags=re.DOTALL)
    cells = {m[1]: m[2] for m in re.finditer(r"mpc\.(\w+)\s*=\s*\{(.*?)\}", code, re.DOTALL)}
    code = re.sub(r"mpc\.\w+\s*=\s*\{.*?\}", "", code, flags=re.DOTALL)
    for table, columns in TABLES.items():
        if table not in matrices or not len(matrices[table]):
            raise CaseError(f"no matrix mpc.{table}; a MATPOWER case of version 2 is needed")
        if matrices[table].shape[1] < columns:
            raise CaseError(
                f"mpc.{table} has {matrices[table].shape[1]} columns, at least {columns} are needed"
            )

    case: dict[str, object] = dict(matrices)
    bus, branch = matrices["bus"], matrices["branch"]
    known: set[str] = set()
    for statement in filter(None, (re.sub(r"[ \t]+", "", s) for s in re.split(r"[;\n]", _spaced(code)))):
        name, _, value = statement.partition("=")
        if name == "mpc.baseMVA" and _number(value):
            case["baseMVA"] = float(value)
        elif name == "mpc.version":
            if value.strip("'\"") != "2":
                raise CaseError(f"version {value} of the format; only version 2 is read (savecase writes it)")
        elif name in BASES and re.fullmatch(BASES[name], value):
            known.add(name)
        elif re.fullmatch(OHM, statement) and known == set(BASES) and "baseMVA" in case:
            base_mva = float(str(case["baseMVA"]))
            branch[:, [idx_brch.BR_R, idx_brch.BR_X]] /= bus[0, idx_bus.BASE_KV] ** 2 / base_mva
        elif re.fullmatch(KILOWATT, statement):
            bus[:, [idx_bus.PD, idx_bus.QD]] /= 1e3
        elif not any(re.fullmatch(pattern, statement) for pattern in SILENT):
            raise CaseError(
                f"the statement {statement!r} is not understood, and without it the numbers may be wrong; "
                "run savecase('plain.m', loadcase('this.m')) in MATPOWER and use plain.m"
            )
    if "baseMVA" not in case:
        raise CaseError("no mpc.baseMVA")
    if "bus_name" in cells:
        names = re.findall(r"'([^']*)'", cells["bus_name"])
        if len(names) != len(bus):
            raise CaseError(f"mpc.bus_name has {len(names)} names for {len(bus)} buses")
        case["bus_name"] = names
    branch[branch[:, idx_brch.TAP] == 0, idx_brch.TAP] = 1.0
    with warnings.catch_warnings():
        # pandas tells pandapower's authors something about types; a user cannot change it.
        warnings.simplefilter("ignore", FutureWarning)
        return from_ppc(case, f_hz=f_hz)


def _uncommented(line: str) -> str:
    """The line up to a `%` that is not within quotes."""
    quoted = False
    for i, letter in enumerate(line):
        quoted ^= letter == "'"
        if letter == "%" and not quoted:
            return line[:i]
    return line


def _spaced(code: str) -> str:
    """Blanks between two names in brackets are MATLAB's commas."""
    return re.sub(r"(?<=\w)[ \t]+(?=\w+[^\n\]]*\])", ",", re.sub(r",[ \t]+", ",", code))


def _number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _matrix(name: str, body: str) -> Array:
    rows = [row.replace(",", " ").split() for row in re.split(r"[;\n]", body)]
    rows = [row for row in rows if row]
    if len({len(row) for row in rows}) > 1:
        raise CaseError(f"rows of mpc.{name} have different lengths")
    try:
        values = np.array([[float(x) for x in row] for row in rows])
    except ValueError as error:
        raise CaseError(f"mpc.{name} holds something that is no number ({error})") from error
    return values.reshape(len(rows), -1)

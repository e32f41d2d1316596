"""Decide: the vocabulary of gridpace and its control methods.

Pure: numpy, scipy, cvxpy, clarabel and highspy, and nothing that knows of mosaik, pandapower,
MQTT, clocks or files.
"""

from controllers.contract import Certificate as Certificate
from controllers.contract import ControlError as ControlError
from controllers.contract import Controller as Controller
from controllers.contract import Decision as Decision
from controllers.contract import Infeasible as Infeasible
from controllers.contract import Instruction as Instruction
from controllers.contract import Interval as Interval
from controllers.contract import Iteration as Iteration
from controllers.contract import Kind as Kind
from controllers.contract import Observation as Observation
from controllers.contract import Origin as Origin
from controllers.contract import Setpoint as Setpoint
from controllers.contract import SolverFailed as SolverFailed
from controllers.contract import Span as Span
from controllers.contract import Word as Word
from controllers.devices import Battery as Battery
from controllers.devices import Device as Device
from controllers.devices import DeviceState as DeviceState
from controllers.devices import FlexibleLoad as FlexibleLoad
from controllers.devices import Generator as Generator
from controllers.devices import PvInverter as PvInverter
from controllers.devices import StaticVarCompensator as StaticVarCompensator
from controllers.devices import WindTurbine as WindTurbine
from controllers.fairness import Fairness as Fairness
from controllers.fairness import Ledger as Ledger
from controllers.fallback import Fallback as Fallback
from controllers.forecast import Forecast as Forecast
from controllers.microgrid import Microgrid as Microgrid
from controllers.network import Flows as Flows
from controllers.network import Limits as Limits
from controllers.network import Network as Network
from controllers.network import PowerFlow as PowerFlow
from controllers.region import Region as Region
from controllers.regulators import CapacitorBank as CapacitorBank
from controllers.regulators import Regulator as Regulator
from controllers.regulators import TapChanger as TapChanger
from controllers.roles import Sight as Sight
from controllers.site import Load as Load
from controllers.site import Site as Site

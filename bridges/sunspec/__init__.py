"""Devices that speak SunSpec Modbus (models 701 to 704 and 713), and an emulator of them; extra `sunspec`."""

from bridges.sunspec.client import NotSunSpec as NotSunSpec
from bridges.sunspec.client import SunSpecDevice as SunSpecDevice

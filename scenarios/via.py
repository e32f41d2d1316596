"""Via: how a run reaches a device that is a real one, as the scenario's file says it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, model_validator

WAYS = ("mqtt", "sunspec")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=False)


class MqttWay(_Part):
    """Over the run's own bus, as docs/wire.md says."""

    gateway: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    """through which it is told, with others in one message; if not given it is told by itself"""


class SunspecWay(_Part):
    """SunSpec Modbus TCP, as docs/sunspec.md says."""

    host: Annotated[str, Field(min_length=1)]
    """name or address of the device, or of the gateway before it"""
    port: Annotated[StrictInt, Field(ge=1, le=65_535)] = 502
    unit: Annotated[StrictInt, Field(ge=0, le=247)] = 1
    """Modbus unit (device id)"""
    tolerance_mw: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-9
    """how far outside its region a multiple of the device's steps may lie"""
    needs_timer: StrictBool = True
    """whether a device is refused whose reversion timer is seen not to run"""


class ViaPart(_Part):
    """Exactly one way."""

    mqtt: MqttWay | None = None
    sunspec: SunspecWay | None = None

    @model_validator(mode="after")
    def _one(self) -> ViaPart:
        given = [way for way in WAYS if getattr(self, way) is not None]
        if len(given) != 1:
            raise ValueError(f"has {' and '.join(given) or 'no way'}; give one of {', '.join(WAYS)}")
        return self


def _spelled(value: Any) -> Any:
    if value == "mqtt":
        return {"mqtt": {}}
    if value == "sunspec":
        raise ValueError(
            "does not say where the device is; write {sunspec: {host: 127.0.0.1, port: 502, unit: 1}}"
        )
    if isinstance(value, str):
        raise ValueError("is no way to a device; write mqtt, or {sunspec: {host: ..., port: 502, unit: 1}}")
    if isinstance(value, dict) and len(value) == 1 and "mqtt" in value and value["mqtt"] is None:
        return {"mqtt": {}}  # `via: {mqtt: }`
    return value


Via = Annotated[
    ViaPart | None,
    BeforeValidator(_spelled),
    Field(json_schema_extra=lambda schema: schema["anyOf"].insert(0, {"type": "string", "const": "mqtt"})),
]

"""Metrics: what Prometheus is told of a run; names and labels as docs/running.md lists them.

No label names a device: there may be thousands. What is not known is not said, rather than zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from controllers.contract import Kind
from scenarios.build import Built
from scenarios.session import Observer
from simulators.devices import Obedience
from simulators.recorder import Progress
from simulators.seats import Turn
from simulators.tables import Outcome

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
ANYWHERE = "--metrics-anywhere"


class NoMetrics(ValueError):
    """Metrics cannot be served; the message says what to do."""


class Metrics:
    """The metrics of one run.

    Args:
        registry: of `prometheus_client`, where they are kept.
        limits: least and greatest voltage [pu].
        broker: whether there is one to be connected to.
    """

    def __init__(
        self, registry: CollectorRegistry, limits: tuple[float, float], *, broker: bool = True
    ) -> None:
        import prometheus_client

        counter = partial(prometheus_client.Counter, registry=registry)
        gauge = partial(prometheus_client.Gauge, registry=registry)
        histogram = partial(prometheus_client.Histogram, registry=registry, buckets=BUCKETS_S)
        self._low, self._high = limits
        self._registry = registry
        self._bus: Counter[str] = Counter()
        self._offered: dict[str, float] = {}
        self.step = histogram("gridpace_step_seconds", "What a step took, by phase.", ["phase"])
        self.lateness = histogram("gridpace_step_lateness_seconds", "How late steps began.")
        self.ack = histogram("gridpace_setpoint_ack_seconds", "From sending an instruction to its answer.")
        self.missed = counter("gridpace_deadline_miss", "Steps that could not begin in time.")
        self.sent = counter("gridpace_setpoints_sent", "Instructions handed to the bus.")
        self.conflated = counter("gridpace_setpoints_conflated", "Messages replaced before they left.")
        self.expired = counter("gridpace_setpoints_expired", "Instructions that were never applied in time.")
        self.rejected = counter("gridpace_setpoints_rejected", "Instructions refused by devices.", ["reason"])
        self.devices = gauge("gridpace_devices", "Devices by what they go by.", ["state"])
        # A gauge says 0 as soon as it is registered. These are registered where there is something to say.
        self.connected = prometheus_client.Gauge(
            "gridpace_mqtt_connected",
            "Whether the broker is there: 1 or 0.",
            registry=registry if broker else None,
        )
        self.reconnects = counter("gridpace_reconnects", "Connections regained.")
        self.solver = counter("gridpace_solver_status", "Due decisions, by which rule spoke.", ["status"])
        self.violations = counter(
            "gridpace_voltage_violation", "Voltages beyond limits, a bus and step each."
        )
        self.correction = prometheus_client.Gauge(
            "gridpace_interchange_correction_kw",
            "By how much microgrids' capabilities were cut last.",
            registry=None,
        )
        self._corrected = False

    def take(self, progress: Progress, bus: Counter[str]) -> None:
        """Count a step that is over.

        Args:
            bus: what the bus has counted so far.
        """
        tick = progress.tick
        if tick is not None and tick.lateness_ms is not None:
            self.lateness.observe(tick.lateness_ms / 1e3)
            self.missed.inc(tick.missed)
        self._durations(progress)
        self._instructions(progress)
        self._devices(progress)
        for turn in progress.turns:
            self.solver.labels(status=str(turn.origin)).inc()
        self.violations.inc(sum(not self._low <= v <= self._high for v in progress.measured.v_pu.values()))
        self._connection(bus)
        self._corrections(progress.turns)

    def _durations(self, progress: Progress) -> None:
        solve = [turn.solve_ms for turn in progress.turns if turn.solve_ms is not None]
        published = progress.published
        for phase, ms in (
            ("solve", sum(solve) if solve else None),
            ("power_flow", progress.measured.power_flow_ms),
            ("publish", None if published is None else published.publish_ms),
        ):
            if ms is not None:
                self.step.labels(phase=phase).observe(ms / 1e3)

    def _instructions(self, progress: Progress) -> None:
        if progress.published is not None:
            self.sent.inc(len(progress.published.instructions))
        for row in progress.setpoints:
            if row["outcome"] is Outcome.EXPIRED:
                self.expired.inc()
            elif row["outcome"] is Outcome.REFUSED:
                self.rejected.labels(reason=(row["reason"] or "unknown").partition(":")[0]).inc()
        for seconds in progress.acks_s:
            self.ack.observe(seconds)

    def _devices(self, progress: Progress) -> None:
        states = Counter(str(report.obedience) for report in progress.reports)
        for state in Obedience:
            if state is not Obedience.UNCONTROLLED:
                self.devices.labels(state=str(state)).set(states[str(state)])

    def _connection(self, bus: Counter[str]) -> None:
        self.connected.set(bus["disconnects"] <= bus["reconnects"])
        self.conflated.inc(max(bus["conflated"] - self._bus["conflated"], 0))
        self.reconnects.inc(max(bus["reconnects"] - self._bus["reconnects"], 0))
        self._bus = Counter(bus)

    def _corrections(self, turns: tuple[Turn, ...]) -> None:
        """What is offered (PIC) and not granted (AIC), over both directions of active power."""
        cut_kw, corrected = 0.0, False
        for turn in turns:
            if (decision := turn.decision) is None:
                continue
            for area, region in decision.regions.items():
                if decision.kind not in (Kind.PIC, Kind.AIC) or "p_mw" not in region.axes:
                    continue
                low, high = region.limits("p_mw")
                if decision.kind is Kind.PIC:
                    self._offered[area] = high - low
                elif area in self._offered:
                    cut_kw += 1e3 * max(self._offered[area] - (high - low), 0.0)
                    corrected = True
        if corrected:
            self.correction.set(cut_kw)
            if not self._corrected:
                self._corrected = True
                self._registry.register(self.correction)


class Metered:
    """An observer that tells `Metrics` of each step, and everything to another one."""

    def __init__(self, inner: Observer, metrics: Metrics) -> None:
        self._inner, self._metrics = inner, metrics

    def begin(self, built: Built, directory: Path) -> None:
        self._inner.begin(built, directory)

    def say(self, line: str) -> None:
        self._inner.say(line)

    def step(self, progress: Progress, counts: Counter[str]) -> None:
        self._metrics.take(progress, counts)
        self._inner.step(progress, counts)

    def end(self) -> None:
        self._inner.end()


def address(text: str, *, anywhere: bool = False) -> tuple[str, int]:
    """Host and port of `HOST:PORT`.

    Raises:
        NoMetrics: no such address, or one that others can reach and `anywhere` is not given.
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or int(port) > 65_535:
        raise NoMetrics(f"--metrics {text}: is no address; write 127.0.0.1:9464")
    try:
        local = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        raise NoMetrics(f"--metrics {text}: {host!r} is no IP address; write 127.0.0.1:{port}") from None
    if not local and not anywhere:
        raise NoMetrics(
            f"--metrics {text}: others could read it without a password; write 127.0.0.1:{port}, or add "
            f"{ANYWHERE} where a firewall keeps them out"
        )
    return ("127.0.0.1" if host == "localhost" else host), int(port)


@contextmanager
def served(
    where: tuple[str, int] | None,
    observer: Observer,
    limits: tuple[float, float],
    *,
    broker: bool = True,
) -> Iterator[Observer]:
    """An observer whose run Prometheus can ask for, as long as the context is entered.

    Args:
        where: from `address`; port 0 for a free one, which is said; `None`: nobody can ask.
        limits, broker: see `Metrics`.

    Raises:
        NoMetrics: prometheus_client is not installed, or the port is taken.
    """
    if where is None:
        yield observer
        return
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise NoMetrics(
            f"--metrics needs prometheus_client ({error}): pip install 'gridpace[metrics]'"
        ) from None
    registry = CollectorRegistry()
    metrics = Metrics(registry, limits, broker=broker)
    host = f"[{where[0]}]" if ":" in where[0] else where[0]
    try:
        server, thread = start_http_server(where[1], addr=where[0], registry=registry)
    except OSError as error:
        raise NoMetrics(
            f"--metrics {host}:{where[1]}: {error.strerror or error}; take another port"
        ) from None
    observer.say(f"metrics: http://{host}:{server.server_port}/metrics")
    try:
        yield Metered(observer, metrics)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

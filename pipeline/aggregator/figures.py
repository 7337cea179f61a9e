"""What the aggregator tells an operator: `treewire status` figures, Prometheus metrics, and the log of drift."""

from __future__ import annotations

from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from pipeline import bus, wire
from pipeline.aggregator.writer import Writer
from pipeline.runtime.process import Process

# Beyond this share of entries that no census counts as live, health warns (requirement S2).
SURPLUS: Final = 1.2


class Figures(Collector):
    def __init__(self, process: Process, writer: Writer, ingress: bus.IngressServer, query: bus.QueryServer) -> None:
        self._process, self._writer, self._ingress, self._query = process, writer, ingress, query
        self._drift: dict[str, int] = {}
        self._held = 0
        process.figures["epoch"] = writer.epoch
        process.registry.register(self)

    def update(self, heartbeat: wire.Heartbeat) -> None:
        writer, figures = self._writer, self._process.figures
        size, live = heartbeat.entries, heartbeat.live
        figures["entries"], figures["live"] = size, live
        figures["projects"] = len(heartbeat.heads)
        figures["complete"] = int(writer.store.complete)
        figures["looks"] = sum(writer.looks.values())
        figures["bad_frames"] = writer.bad + self._query.bad
        figures["drift"] = sum(writer.drift.values())
        figures["censuses_held"] = writer.held
        surplus = writer.store.complete and size > SURPLUS * max(live, 1)
        self._process.state = "degraded" if surplus else "running"
        if surplus:
            figures["reason"] = (
                f"{size} entries, but only {live} live workspaces: if the database was meant to be replaced, restart"
            )
        else:
            figures.pop("reason", None)
        self._log_drift()

    def _log_drift(self) -> None:
        """One line per census that corrected something (requirement R3)."""
        writer = self._writer
        if writer.drift != self._drift:
            fresh = {group: count - self._drift.get(group, 0) for group, count in writer.drift.items()}
            corrected = {group: count for group, count in fresh.items() if count}
            self._process.log.info("drift corrected by a census", **corrected)
            self._drift = dict(writer.drift)
        if writer.held != self._held:
            self._process.log.warning("mass delete held until the next census confirms it")
            self._held = writer.held

    def collect(self) -> list[Metric]:
        writer, store = self._writer, self._writer.store
        looks = CounterMetricFamily("treewire_looks", "Looks by group and verdict.", labels=["group", "verdict"])
        for (group, verdict), count in writer.looks.items():
            looks.add_metric([group, verdict], count)
        drift = CounterMetricFamily("treewire_drift", "Known values that a census corrected.", labels=["group"])
        for group, count in writer.drift.items():
            drift.add_metric([group], count)
        versions = GaugeMetricFamily("treewire_version", "Version of each project.", labels=["project"])
        for project, ledger in store.projects.items():
            versions.add_metric([project], ledger.version)
        return [
            looks,
            drift,
            versions,
            GaugeMetricFamily("treewire_store_entries", "Entries in the store.", value=len(store.entries)),
            GaugeMetricFamily("treewire_store_live", "Workspaces in the last complete census.", value=store.live),
            GaugeMetricFamily("treewire_store_tombstones", "Tombstones kept.", value=len(store.tombstones)),
            GaugeMetricFamily("treewire_relooks", "Groups whose looks disagree.", value=len(writer.relooks)),
            CounterMetricFamily("treewire_store_evictions", "Entries evicted for room.", value=store.evictions),
            CounterMetricFamily("treewire_censuses", "Censuses taken in.", value=writer.censuses),
            CounterMetricFamily("treewire_censuses_held", "Censuses whose mass delete was held.", value=writer.held),
            CounterMetricFamily("treewire_bad_frames", "Frames dropped.", value=writer.bad + self._query.bad),
        ]

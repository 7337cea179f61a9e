"""What the gateway tells an operator: `treewire status` figures and Prometheus metrics."""

from __future__ import annotations

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.hub import Hub
from gateway.ingest import Recorder
from gateway.socket import Tally
from pipeline.runtime.process import Process


class Figures(Collector):
    def __init__(self, process: Process, hub: Hub, tally: Tally, recorder: Recorder) -> None:
        self._process, self._hub, self._tally, self._recorder = process, hub, tally, recorder
        process.before_beat = self.update
        process.registry.register(self)

    def update(self) -> None:
        hub, figures = self._hub, self._process.figures
        figures["clients"] = len(hub.clients)
        figures["projects"] = len(hub.shelves)
        figures["accepted"] = self._recorder.accepted
        figures["stale"] = int(hub.stale)
        why = "the aggregator is not heard" if hub.stale else ""
        if self._recorder.state != "ok":
            why = "the catalog cannot be used"
        if self._process.state in ("running", "degraded"):
            self._process.state = "degraded" if why else "running"
        if why:
            figures["reason"] = why
        else:
            figures.pop("reason", None)

    def collect(self) -> list[Metric]:
        hub, tally, recorder = self._hub, self._tally, self._recorder
        closed = CounterMetricFamily("treewire_sockets_closed", "Sockets closed by us, by code.", labels=["code"])
        for code, count in tally.closed.items():
            closed.add_metric([str(code)], count)
        subscriptions = GaugeMetricFamily("treewire_subscribers", "Clients that follow a project.", labels=["project"])
        for project, readers in hub.readers.items():
            subscriptions.add_metric([project], len(readers))
        encoded = sum(shelf.encoded for shelf in hub.shelves.values())
        return [
            closed,
            subscriptions,
            GaugeMetricFamily("treewire_clients", "Sockets, event streams, long-polls.", value=len(hub.clients)),
            GaugeMetricFamily("treewire_tick_seconds", "Time between two rounds of frames.", value=hub.tick()),
            GaugeMetricFamily("treewire_stale", "Whether the aggregator is not heard.", value=int(hub.stale)),
            CounterMetricFamily("treewire_sockets_opened", "Sockets and event streams opened.", value=tally.opened),
            CounterMetricFamily("treewire_frames_encoded", "Encodings, shared by all at one cursor.", value=encoded),
            CounterMetricFamily("treewire_writes", "Writes to sockets.", value=tally.writes),
            CounterMetricFamily("treewire_sent_bytes", "Bytes written to sockets.", value=tally.bytes),
            CounterMetricFamily("treewire_blocked", "Times that a socket could take no more.", value=tally.blocked),
            CounterMetricFamily("treewire_resyncs", "Resyncs that clients asked for.", value=tally.resyncs),
            CounterMetricFamily("treewire_rounds", "Rounds of frames.", value=hub.flushes),
            CounterMetricFamily("treewire_follow_gaps", "Gaps in the feed.", value=hub.follower.gaps),
            CounterMetricFamily("treewire_follow_mismatches", "Wrong replicas.", value=hub.follower.mismatches),
            CounterMetricFamily("treewire_follow_bad", "Frames dropped.", value=hub.follower.bad),
            CounterMetricFamily("treewire_events_accepted", "Events recorded.", value=recorder.accepted),
            CounterMetricFamily("treewire_event_requests_refused", "Requests refused.", value=recorder.refused),
            CounterMetricFamily("treewire_event_commits", "Transactions of events.", value=recorder.commits),
            CounterMetricFamily("treewire_looks_unsent", "Looks left to a census.", value=hub.unsent),
        ]

"""Answers: what came after a cursor, the whole of a project, and why a value is what it is. Reads, never writes."""

from __future__ import annotations

from pipeline import wire
from pipeline.domain.store import Store, Told


class Answers:
    def __init__(self, store: Store, epoch: str) -> None:
        self._store, self._epoch = store, epoch

    def __call__(self, query: wire.Query) -> wire.Answer:
        return self._since(query) if isinstance(query, wire.Since) else self._explain(query)

    def _since(self, query: wire.Since) -> wire.Answer:
        ledger = self._store.projects.get(query.project)
        if ledger is None:
            return wire.Missing(query.id)
        if query.epoch == self._epoch:
            patch = ledger.since(query.version)
            if patch is not None:
                delta = wire.Delta(query.project, self._epoch, query.version, ledger.version, patch)
                return wire.Changes(query.id, delta)
        return wire.Image(
            query.id,
            query.project,
            self._epoch,
            ledger.version,
            ledger.floor,
            ledger.hash(),
            self._store.is_complete(query.project),
            ledger.dump(),
            dict(ledger.gone),
        )

    def _explain(self, query: wire.Explain) -> wire.Answer:
        rulings = {
            group: [_ruled(told) for told in history]
            for group, history in self._store.rulings(query.workspace, query.group).items()
        }
        entry = self._store.entries.get(query.workspace)
        if entry is None:
            if not rulings:
                return wire.Missing(query.id)
            project = next(iter(rulings.values()))[-1].look.project
            return wire.Explained(query.id, project, query.workspace, 0, {}, rulings)
        ledger = self._store.projects[entry.project]
        state = ledger.entries[query.workspace].state()
        return wire.Explained(query.id, entry.project, query.workspace, ledger.version, state, rulings)


def _ruled(told: Told) -> wire.Ruled:
    return wire.Ruled(told.look, told.ruling.verdict, told.ruling.cause, told.wall_ms, told.times)

"""Who reaches whom: every ordered pair of some stations, probed at the same time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from calico_core.lab.probes import ProbeKind, ProbeResult, probe
from calico_core.lab.station import Station

_MOST_AT_ONCE = 16


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    target: str
    kind: ProbeKind
    result: ProbeResult


class Reachability(msgspec.Struct, frozen=True, kw_only=True):
    """All cells, by source, then target, then kind in the order asked."""

    names: tuple[str, ...]
    kinds: tuple[ProbeKind, ...]
    cells: tuple[Cell, ...]
    seconds: float

    def find(self, source: str, target: str, kind: ProbeKind | None = None) -> ProbeResult:
        """``kind`` None takes the first one asked."""
        wanted = kind or self.kinds[0]
        for cell in self.cells:
            if (cell.source, cell.target, cell.kind) == (source, target, wanted):
                return cell.result
        raise KeyError((source, target, wanted))

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """A table for people, heading first: a line a source, a column a target."""
        heading = ("from \\ to", *self.names)
        lines = (
            (source, *("—" if source == target else self._words(source, target) for target in self.names))
            for source in self.names
        )
        return (heading, *lines)

    def _words(self, source: str, target: str) -> str:
        results = [(kind, self.find(source, target, kind)) for kind in self.kinds]
        if len(results) == 1:
            return _word(results[0][1])
        return ", ".join(f"{kind} {_word(result)}" for kind, result in results)


def matrix(
    stations: Sequence[Station],
    kinds: Sequence[ProbeKind] = ("tcp",),
    *,
    port: int = 0,
    ip_version: int = 4,
    timeout_s: float = 0.5,
) -> Reachability:
    """Probe every ordered pair with every kind. With a ``port`` those of one target go one after another."""
    started = time.monotonic()

    def to_target(target: Station) -> list[Cell]:
        return [one(source, target, kind) for source in stations if source is not target for kind in kinds]

    def one(source: Station, target: Station, kind: ProbeKind) -> Cell:
        result = probe(source, target, kind, port, ip_version=ip_version, timeout_s=timeout_s)
        return Cell(source=source.name, target=target.name, kind=kind, result=result)

    triples = [
        (source, target, kind) for source in stations for target in stations if source is not target for kind in kinds
    ]
    with ThreadPoolExecutor(max_workers=_MOST_AT_ONCE, thread_name_prefix="probe") as pool:
        if port:
            found = [cell for cells in pool.map(to_target, stations) for cell in cells]
        else:
            found = list(pool.map(lambda triple: one(*triple), triples))
    by_pair = {(cell.source, cell.target, cell.kind): cell for cell in found}
    return Reachability(
        names=tuple(station.name for station in stations),
        kinds=tuple(kinds),
        cells=tuple(by_pair[source.name, target.name, kind] for source, target, kind in triples),
        seconds=time.monotonic() - started,
    )


def _word(result: ProbeResult) -> str:
    return "yes" if result.is_reachable else "no"

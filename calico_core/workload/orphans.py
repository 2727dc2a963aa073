"""Host interfaces that outlived their records: nobody would ever detach them."""

from __future__ import annotations

from collections.abc import Mapping

from calico_core.interfaces.dataplane import WorkloadWiring
from calico_core.interfaces.datastore import Records
from calico_core.log import get_logger
from calico_core.model.keys import HOSTS

log = get_logger(__name__)


def remove_orphans(wiring: WorkloadWiring, records: Records, host: str) -> tuple[str, ...]:
    """As :meth:`Workloads.remove_orphans` says. The kernel is asked first: an attach writes its record before it makes
    the interface, so what has none now had none then, or is being detached."""
    found = wiring.orphans()
    names = _unrecorded(found, records, host) if found else ()
    wiring.remove_orphans([found[name] for name in names])
    if names:
        log.info("orphans.removed", interfaces=names)
    return names


def _unrecorded(found: Mapping[str, int], records: Records, host: str) -> tuple[str, ...]:
    prefix = f"{HOSTS}{host}/workload/"
    count = len(records.store.list(prefix).entries)
    recorded = records.list(prefix)
    if len(recorded) < count:
        log.warning("orphans.kept", interfaces=sorted(found), reason="a record cannot be read")
        return ()
    return tuple(sorted(set(found) - {each.record.name for each in recorded}))

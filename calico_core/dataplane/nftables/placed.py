"""What one interface of a workload contributes to the table. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from calico_core.model.hoststate import HostWorkload


class Own(msgspec.Struct, frozen=True):
    """What of it does not come of policy: elements of its addresses and the chain of what else it may send from. It is
    the same while the workload has the same and nobody's claims change."""

    workload: HostWorkload
    generation: int
    addresses: tuple[tuple[str, Any], ...]
    source_chain: str
    problem: str | None

    def holds(self, workload: HostWorkload, generation: int) -> bool:
        """Most changes are of policies."""
        before = self.workload
        return (
            self.generation == generation
            and before.key == workload.key
            and before.mac == workload.mac
            and before.nets == workload.nets
            and before.nats == workload.nats
            and before.allowed_source_prefixes == workload.allowed_source_prefixes
        )


class Placed(msgspec.Struct, frozen=True):
    """Whose it is, elements by set, each once, and the list chains it needs."""

    subject: str
    elements: tuple[tuple[str, Any], ...]
    chains: tuple[str, ...]
    own: Own

"""Floating addresses of local workloads: each leads to one workload. Source: felix specification 6.7.

Two records may name the same floating address, for a while or by mistake: the first by its key has it, so that the
kernel's map from address to workload is the same whatever came first.
"""

from __future__ import annotations

from collections import defaultdict

from netaddr import IPAddress

from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.hoststate import HostNat
from calico_core.model.keys import WorkloadEndpointKey

NO_NATS: tuple[HostNat, ...] = ()


class FloatingAddresses:
    """The active local workloads that have some."""

    def __init__(self) -> None:
        self._claims: dict[WorkloadEndpointKey, tuple[HostNat, ...]] = {}
        self._claimants: defaultdict[IPAddress, set[WorkloadEndpointKey]] = defaultdict(set)

    def put(self, key: WorkloadEndpointKey, endpoint: WorkloadEndpoint | None) -> set[WorkloadEndpointKey]:
        """None: gone, or not active. Other workloads whose floating addresses may be others now."""
        records = () if endpoint is None else endpoint.ipv4_nat + endpoint.ipv6_nat
        if not records and key not in self._claims:
            return set()
        before = self._claims.pop(key, NO_NATS)
        others: set[WorkloadEndpointKey] = set()
        for nat in before:
            claimants = self._claimants[nat.external]
            claimants.discard(key)
            others |= claimants
            if not claimants:
                del self._claimants[nat.external]
        if records:
            nats = {HostNat(internal=each.int_ip, external=each.ext_ip) for each in records}
            self._claims[key] = tuple(sorted(nats, key=lambda nat: (nat.internal, nat.external)))
        for nat in self._claims.get(key, NO_NATS):
            others |= self._claimants[nat.external]
            self._claimants[nat.external].add(key)
        return others - {key}

    def of(self, key: WorkloadEndpointKey) -> tuple[HostNat, ...]:
        """Sorted. An address that is said to lead to several of the workload's own leads to the first."""
        nats: dict[IPAddress, HostNat] = {}
        for nat in self._claims.get(key, NO_NATS):
            if min(self._claimants[nat.external], key=lambda each: each.path) == key:
                nats.setdefault(nat.external, nat)
        return tuple(nats.values())

"""Who has an interface, and who has an address, when several workloads claim it: the first by its key's path, of those
that are active; an address of several goes to the first whose interface is up, as long as there is such a one.

Such conflicts are passing states (a migration, a record written before the old one went) or mistakes; either way the
answer must not depend on the order of events. Which interfaces are up is told from outside: whoever changes that places
those of :meth:`rivals` anew. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

from netaddr import IPNetwork

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netaddr import IPAddress

    from calico_core.model.hoststate import HostNat, HostWorkload
    from calico_core.model.keys import WorkloadEndpointKey

T = TypeVar("T")


class Down:
    """Interfaces of rivals that are not up, or not there. Told by one, read by all who go by it; one thread."""

    def __init__(self) -> None:
        self.names: frozenset[str] = frozenset()
        self.generation = 0

    def tell(self, names: Iterable[str]) -> bool:
        """Whether that is news."""
        found = frozenset(names)
        if found == self.names:
            return False
        self.names = found
        self.generation += 1
        return True


class Claims:
    """The workloads of a host by interface and by address."""

    def __init__(self, down: Down | None = None) -> None:
        self._down = Down() if down is None else down
        self._workloads: dict[WorkloadEndpointKey, HostWorkload] = {}
        self._by_interface: defaultdict[str, set[WorkloadEndpointKey]] = defaultdict(set)
        self._by_network: defaultdict[IPNetwork, set[WorkloadEndpointKey]] = defaultdict(set)
        self._contested: set[str] = set()  # interfaces that several claim
        self._shared: set[IPNetwork] = set()  # addresses that several claim
        self._changes = 0

    @property
    def generation(self) -> int:
        """Another number after each change of who has what."""
        return self._changes + self._down.generation

    def put(self, workload: HostWorkload) -> set[str]:
        """Gives the interfaces for which something may be different now."""
        if self.keep(workload):
            self._workloads[workload.key] = workload
            return {workload.interface}
        touched = self.remove(workload.key)
        self._changes += 1
        self._workloads[workload.key] = workload
        self._by_interface[workload.interface].add(workload.key)
        self._note_claims(workload.interface)
        touched.add(workload.interface)
        if workload.is_active:
            for network in _networks(workload):
                touched |= self._interfaces(network)
                self._by_network[network].add(workload.key)
                self._note_shared(network)
        return touched

    def keep(self, workload: HostWorkload) -> bool:
        """Whether it claims what it claims already. Most changes are of policies."""
        before = self._workloads.get(workload.key)
        return before is not None and _claims_the_same(before, workload)

    def remove(self, key: WorkloadEndpointKey) -> set[str]:
        workload = self._workloads.pop(key, None)
        if workload is None:
            return set()
        self._changes += 1
        _discard(self._by_interface, workload.interface, key)
        self._note_claims(workload.interface)
        touched = {workload.interface}
        for network in _networks(workload):
            _discard(self._by_network, network, key)
            self._note_shared(network)
            touched |= self._interfaces(network)
        return touched

    def clear(self) -> None:
        self._changes += 1
        for index in (self._workloads, self._by_interface, self._by_network, self._contested, self._shared):
            index.clear()

    def owner(self, interface: str) -> HostWorkload | None:
        """An inactive one only when no active one claims it."""
        claims = self._by_interface.get(interface)
        if not claims:
            return None
        if len(claims) > 1:
            claims = {key for key in claims if self._workloads[key].is_active} or claims
        return self._workloads[_first(claims)]

    def losers(self) -> Iterator[tuple[HostWorkload, str]]:
        """Active workloads whose interface another one has, and why they are not in force."""
        for interface in sorted(self._contested):
            owner = self.owner(interface)
            for key in sorted(self._by_interface[interface], key=lambda key: key.path):
                workload = self._workloads[key]
                if owner is not None and workload.is_active and key != owner.key:
                    yield workload, f"another endpoint has the interface {interface}: {owner.key.path}"

    def networks(self, interface: str) -> tuple[IPNetwork, ...]:
        """What shall be routed to the interface: the workload's addresses, and those it is also known by."""
        workload = self.owner(interface)
        if workload is None or not workload.is_active:
            return ()
        own = [net for net in dict.fromkeys(workload.nets) if self._holder(self._by_network[net]) == workload.key]
        externals = [IPNetwork(nat.external) for nat in workload.nats if self.leads(workload, nat)]
        return tuple(dict.fromkeys([*own, *externals]))

    def has(self, key: WorkloadEndpointKey, address: IPAddress) -> bool:
        """Whether it is this workload that has the address."""
        claims = self._by_network.get(IPNetwork(address))
        return claims is not None and self._holder(claims) == key

    def leads(self, workload: HostWorkload, nat: HostNat) -> bool:
        """Whether the floating address is the workload's, and so is the address it stands for: else it leads nobody
        anywhere."""
        return self.has(workload.key, nat.external) and self.has(workload.key, nat.internal)

    def claimant(self, address: IPAddress) -> HostWorkload | None:
        """Who has the address."""
        claims = self._by_network.get(IPNetwork(address))
        return self._workloads[self._holder(claims)] if claims else None

    def rivals(self) -> set[str]:
        """Interfaces whose workloads claim an address of each other."""
        return {interface for network in self._shared for interface in self._interfaces(network)}

    def interfaces(self) -> set[str]:
        return set(self._by_interface)

    def keys(self, interface: str) -> set[WorkloadEndpointKey]:
        """Every claimant."""
        return self._by_interface.get(interface, set())

    def _note_claims(self, interface: str) -> None:
        is_contested = len(self._by_interface.get(interface, ())) > 1
        (self._contested.add if is_contested else self._contested.discard)(interface)

    def _note_shared(self, network: IPNetwork) -> None:
        is_shared = len(self._by_network.get(network, ())) > 1
        (self._shared.add if is_shared else self._shared.discard)(network)

    def _holder(self, keys: set[WorkloadEndpointKey]) -> WorkloadEndpointKey:
        """Of those that claim an address."""
        if len(keys) > 1 and self._down.names:
            keys = {key for key in keys if self._workloads[key].interface not in self._down.names} or keys
        return _first(keys)

    def _interfaces(self, network: IPNetwork) -> set[str]:
        return {self._workloads[key].interface for key in self._by_network.get(network, ())}


def _claims_the_same(one: HostWorkload, other: HostWorkload) -> bool:
    """Most changes are of policies: nobody else need be looked at."""
    return (
        one.interface == other.interface
        and one.is_active == other.is_active
        and one.nets == other.nets
        and one.nats == other.nats
    )


def _networks(workload: HostWorkload) -> dict[IPNetwork, None]:
    """Each once, in order."""
    return dict.fromkeys([*workload.nets, *(IPNetwork(nat.external) for nat in workload.nats)])


def _first(keys: set[WorkloadEndpointKey]) -> WorkloadEndpointKey:
    return next(iter(keys)) if len(keys) == 1 else min(keys, key=lambda key: key.path)


def _discard(index: dict[T, set[WorkloadEndpointKey]], name: T, key: WorkloadEndpointKey) -> None:
    keys = index.get(name)
    if keys is None:
        return
    keys.discard(key)
    if not keys:
        del index[name]

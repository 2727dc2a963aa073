"""A small working ``Ipam``: addresses of a few networks, handed out in order, kept in a dict."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from netaddr import IPAddress, IPNetwork

from calico_core.errors import AddressInUse, NoPools, OutsidePools, PoolExhausted, StaleRelease
from calico_core.interfaces.datastore import Records
from calico_core.interfaces.ipam import Allocation, Companion, Ipam, MakeCompanion
from calico_core.model.addresses import contains
from calico_core.model.workloads import AddressRequest

DEFAULT_POOLS = (IPNetwork("10.65.0.0/24"), IPNetwork("fd80:65::/120"))


class MemoryIpam(Ipam):
    """``companions`` counts those that were asked for; their writes are not carried out. ``failure`` is raised by the
    next release by handle, once."""

    def __init__(self, pools: Sequence[IPNetwork] = DEFAULT_POOLS) -> None:
        self.pools = tuple(pools)
        self.held: dict[IPAddress, tuple[str | None, dict[str, object]]] = {}
        self.requests: list[AddressRequest] = []
        self.companions = 0
        self.failure: BaseException | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, records: Records, host: str) -> MemoryIpam:
        return cls()

    def auto_assign(
        self,
        request: AddressRequest,
        companion: MakeCompanion | None = None,
        *,
        deadline_s: float = 20.0,
    ) -> tuple[IPAddress, ...]:
        with self._lock:
            self.requests.append(request)
            standing = self._of(request.handle)
            chosen = [*standing, *(each for each in request.requested if each not in standing)]
            for address in request.requested:
                self._require_free(address, request.handle, request.takes_over)
            for version, wanted, pools in (
                (4, request.num_v4, request.pools_v4),
                (6, request.num_v6, request.pools_v6),
            ):
                missing = wanted - sum(each.version == version for each in chosen)
                chosen += self._free(version, missing, pools, chosen)
            if companion is not None:
                companion(tuple(chosen))
                self.companions += 1
            self.held.update({each: (request.handle, dict(request.attributes)) for each in chosen})
            return tuple(sorted(chosen, key=lambda each: (each.version, each.value)))

    def release(
        self,
        addresses: Sequence[IPAddress],
        *,
        handle: str | None = None,
        sequences: Mapping[IPAddress, int | None] | None = None,
    ) -> tuple[IPAddress, ...]:
        with self._lock:
            for address in addresses:
                holder = self.held.get(address)
                if handle is not None and holder is not None and holder[0] != handle:
                    raise StaleRelease(str(address), handle, str(holder[0]))
            return tuple(address for address in addresses if self.held.pop(address, None) is None)

    def release_by_handle(
        self,
        handles: Sequence[str],
        companion: Companion | None = None,
        *,
        sequences: Mapping[IPAddress, int | None] | None = None,
    ) -> tuple[IPAddress, ...]:
        with self._lock:
            failure, self.failure = self.failure, None
            if failure is not None:
                raise failure
            freed = tuple(address for handle in handles for address in self._of(handle))
            for address in freed:
                del self.held[address]
            return freed

    def by_handle(self, handle: str) -> tuple[IPAddress, ...]:
        with self._lock:
            return self._of(handle)

    def allocation(self, address: IPAddress) -> Allocation | None:
        found = self.held.get(address)
        return Allocation(address, *found) if found else None

    def claim_affinity(self, cidr: IPNetwork, host: str) -> None:
        """There are no blocks here."""

    def release_affinity(self, cidr: IPNetwork, host: str) -> None:
        """There are no blocks here."""

    def release_host(self, host: str) -> None:
        """There are no blocks here."""

    def _of(self, handle: str) -> tuple[IPAddress, ...]:
        return tuple(sorted(address for address, (holder, _) in self.held.items() if holder == handle))

    def _require_free(self, address: IPAddress, handle: str, takes_over: Sequence[str] = ()) -> None:
        if not any(contains(pool, address) for pool in self.pools):
            raise OutsidePools(str(address), tuple(map(str, self.pools)))
        if address in self.held and self.held[address][0] not in {handle, *takes_over}:
            raise AddressInUse(str(address), self.held[address][0])

    def _free(
        self, version: int, wanted: int, asked: Sequence[IPNetwork], chosen: Sequence[IPAddress]
    ) -> list[IPAddress]:
        if wanted <= 0:
            return []
        pools = [pool for pool in self.pools if pool.version == version and (not asked or pool in asked)]
        if not pools:
            raise NoPools(version, tuple(map(str, asked)), tuple(map(str, self.pools)))
        every = (IPAddress(pool.first + offset, version) for pool in pools for offset in range(1, pool.size))
        found = []
        for address in every:
            if address not in self.held and address not in chosen:
                found.append(address)
                if len(found) == wanted:
                    return found
        raise PoolExhausted(version, wanted, len(found), "every address is held")

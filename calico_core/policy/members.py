"""The addresses of each endpoint and the endpoints of each address, as integers.

An IPv4 address is its value, an IPv6 address its value with bit 128 set, so that one dictionary holds both. Wider
networks stand apart; only network sets have them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from netaddr import IPNetwork
from pyroaring import BitMap

from calico_core.model.addresses import WIDTH
from calico_core.model.endpoints import HostEndpoint, WorkloadEndpoint
from calico_core.model.policies import NetworkSet

if TYPE_CHECKING:
    from netaddr import IPAddress

V6 = 1 << 128
Hosts = int | tuple[int, ...]
"""One IPv4 address, or any others. The first is by far the most frequent, and a tuple costs 48 bytes."""
Nets = tuple[IPNetwork, ...]
NO_HOSTS: Hosts = ()
_DENSE = 4
"""Where for so many items at most one is missing between the first and the last, the addresses are taken as a piece."""


def addresses_of(record: WorkloadEndpoint | HostEndpoint | NetworkSet) -> tuple[Hosts, Nets]:
    """What the record brings into the sets it matches. Learned and floating addresses are no members."""
    if isinstance(record, WorkloadEndpoint):
        if len(record.ipv4_nets) == 1 and not record.ipv6_nets:
            return record.ipv4_nets[0].value or 0, ()
        return _split((*record.ipv4_nets, *record.ipv6_nets))
    if isinstance(record, HostEndpoint):
        return _hosts((*record.expected_ipv4_addrs, *record.expected_ipv6_addrs)), ()
    return _split(record.nets)


def _hosts(addresses: Iterable[IPAddress]) -> Hosts:
    values = tuple(dict.fromkeys(int(each) if each.version == 4 else int(each) | V6 for each in addresses))
    return values[0] if len(values) == 1 and values[0] < V6 else values


def _split(nets: Iterable[IPNetwork]) -> tuple[Hosts, Nets]:
    values: dict[int, None] = {}
    wide: list[IPNetwork] = []
    for net in nets:
        version = net.version
        if net.prefixlen != WIDTH[version]:
            wide.append(net)
        else:
            value = net.value or 0
            values[value if version == 4 else value | V6] = None
    hosts = tuple(values)
    return hosts[0] if len(hosts) == 1 and hosts[0] < V6 else hosts, tuple(wide)


def each_host(hosts: Hosts) -> tuple[int, ...]:
    return hosts if isinstance(hosts, tuple) else (hosts,)


def outermost(nets: Iterable[IPNetwork]) -> frozenset[IPNetwork]:
    """Without those that lie within another: the kernel's interval sets refuse overlaps."""
    kept: list[IPNetwork] = []
    for net in sorted(nets, key=lambda net: (net.version, net.first, net.prefixlen)):
        if not kept or kept[-1].version != net.version or kept[-1].last < net.first:
            kept.append(net)
    return frozenset(kept)


class MemberTable:
    """Addresses by endpoint number, and back."""

    def __init__(self) -> None:
        self._hosts: list[Hosts] = []
        self._v4 = array("I")
        """The one IPv4 address of an endpoint, for those that can be taken as a piece; 0 for any others."""
        self._nets: dict[int, Nets] = {}
        self._irregular = BitMap()
        """Endpoints with anything but exactly one IPv4 address."""
        self._owners: dict[int, int | set[int]] = {}
        self.with_nets = BitMap()

    def hosts(self, item: int) -> Hosts:
        return self._hosts[item] if item < len(self._hosts) else NO_HOSTS

    def nets(self, item: int) -> Nets:
        return self._nets.get(item, ())

    def replace(self, item: int, hosts: Hosts, nets: Nets) -> None:
        for host in each_host(self.hosts(item)):
            self._disown(host, item)
        self._irregular.discard(item)
        if self._nets.pop(item, None) is not None:
            self.with_nets.discard(item)
        self.put(item, hosts, nets)

    def put(self, item: int, hosts: Hosts, nets: Nets) -> None:
        """As :meth:`replace`, of an endpoint that has none."""
        missing = item + 1 - len(self._hosts)
        if missing > 0:
            self._hosts.extend([NO_HOSTS] * missing)
            self._v4.extend([0] * missing)
        self._hosts[item] = hosts
        if isinstance(hosts, tuple):
            self._v4[item] = 0
            self._irregular.add(item)
            for host in hosts:
                self._own(host, item)
        else:
            self._v4[item] = hosts
            if self._owners.setdefault(hosts, item) is not item:
                self._own(hosts, item)
        if nets:
            self._nets[item] = nets
            self.with_nets.add(item)

    def collect(self, items: BitMap) -> tuple[BitMap, set[int]]:
        """The IPv4 and the IPv6 addresses of the items."""
        v6: set[int] = set()
        if not items:
            return BitMap(), v6
        hosts = self._hosts
        regular = items - self._irregular if self._irregular else items
        v4 = self._v4_of(regular) if regular else BitMap()
        if regular is not items and len(regular) != len(items):
            v4_values: list[int] = []
            for item in items & self._irregular:
                for host in each_host(hosts[item]):
                    if host < V6:
                        v4_values.append(host)
                    else:
                        v6.add(host - V6)
            v4.update(v4_values)
        return v4, v6

    def _v4_of(self, regular: BitMap) -> BitMap:
        first, last = regular.min(), regular.max()
        missing = last + 1 - first - len(regular)
        if missing * _DENSE > len(regular):
            return BitMap(cast(list[int], list(map(self._hosts.__getitem__, regular.to_array()))))
        values = self._v4[first : last + 1]
        if missing:
            for item in regular.flip(first, last + 1).to_array():
                values[item - first] = values[0]
        return BitMap(values)

    def is_owned(self, host: int, items: BitMap) -> bool:
        """Whether one of the items has the address."""
        owner = self._owners.get(host)
        if owner is None:
            return False
        return owner in items if isinstance(owner, int) else any(each in items for each in owner)

    def _own(self, host: int, item: int) -> None:
        owner = self._owners.setdefault(host, item)
        if owner == item:
            return
        if isinstance(owner, int):
            self._owners[host] = {owner, item}
        else:
            owner.add(item)

    def _disown(self, host: int, item: int) -> None:
        owner = self._owners.get(host)
        if isinstance(owner, set):
            owner.discard(item)
            if len(owner) == 1:
                self._owners[host] = owner.pop()
        elif owner == item:
            del self._owners[host]

"""Translation: floating addresses, the metadata address, masquerade of pools and of tunnels. Pure.

A chain and its jump stand only while something wants them: they make the kernel look up NAT for every connection.
Source: felix specification 6.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netaddr import IPNetwork

from calico_core.dataplane.iptables.ipsets import address_text, nets_set
from calico_core.dataplane.iptables.layout import chain
from calico_core.dataplane.iptables.names import FLOATING_CHAIN, NAT, set_name
from calico_core.dataplane.reconcile import NamedSet
from calico_core.model.addresses import WIDTH
from calico_core.model.always_open import METADATA, METADATA_PORT
from calico_core.model.hoststate import HostPeers, HostPools
from calico_core.model.tunnels import DEVICE_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from calico_core.dataplane.iptables.desired import Desired
    from calico_core.dataplane.iptables.layout import Layout
    from calico_core.model.hoststate import HostNat

POOLS, FLOATING = "pools", "floating addresses"
SNAT_CHAIN = "calico-fip-snat"
_WITH_PORTS = (6, 17)
_METADATA = f"{METADATA}/32 -p 6 -m tcp --dport {METADATA_PORT}"
# Addresses of the host that the device does not have: the other end could not answer them through the tunnel.
_NOT_OF_DEVICE = "-m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL"


class NatChains:
    """One thread. ``closed``: reasons by subject, shared with the caller."""

    def __init__(self, desired: Desired, layouts: Layout, closed: Mapping[str, str]) -> None:
        self._desired, self._layout, self._closed = desired, layouts, closed
        self._pools, self._peers = HostPools(), HostPeers()
        self._nats: dict[int, tuple[HostNat, ...]] = {}
        self._is_dirty = True

    def put_pools(self, pools: HostPools) -> None:
        self._pools, self._is_dirty = pools, True

    def put_peers(self, peers: HostPeers) -> None:
        self._peers, self._is_dirty = peers, True

    def put_floating(self, nats: Iterable[HostNat]) -> None:
        """All of the host's; each external address once."""
        made: dict[int, list[HostNat]] = {4: [], 6: []}
        for each in sorted(nats, key=lambda nat: (nat.external.version, int(nat.external))):
            made[each.external.version].append(each)
        nats_now = {family: tuple(each) for family, each in made.items()}
        if nats_now != self._nats:
            self._nats, self._is_dirty = nats_now, True

    @property
    def leading(self) -> dict[tuple[int, str], frozenset[int]]:
        """The external addresses of each internal one, as :func:`saved.parse_saved` finds them."""
        found: dict[tuple[int, str], set[int]] = {}
        for family, nats in self._nats.items():
            if family in self._layout.families and FLOATING not in self._closed:
                for each in nats:
                    where = (family, address_text(int(each.internal), family))
                    found.setdefault(where, set()).add(int(each.external))
        return {where: frozenset(each) for where, each in found.items()}

    def finish(self) -> None:
        if not self._is_dirty:
            return
        self._is_dirty = False
        for family in self._layout.families:
            is_floating = bool(self._nats.get(family)) and FLOATING not in self._closed
            dnat = [f"-j {FLOATING_CHAIN}"] if is_floating else []
            self._put(family, FLOATING_CHAIN, self._dnat(family) if is_floating else [], FLOATING)
            self._put(family, SNAT_CHAIN, self._snat(family) if is_floating else [], FLOATING)
            self._put(family, "calico-PREROUTING", [*self._metadata(family), *dnat])
            self._put(family, "calico-OUTPUT", dnat)
            leaving = [f"-j {SNAT_CHAIN}"] if is_floating else []
            self._put(
                family, "calico-POSTROUTING", [*leaving, *self._tunnels(family), *self._masquerade(family)], POOLS
            )

    def _put(self, family: int, name: str, rules: list[str], subject: str = "") -> None:
        where = (family, NAT)
        standing = self._desired.tables[where].chains
        if not rules:
            if name in standing:
                self._desired.drop_chain(where, name)
            return
        wanted = chain(rules)
        if standing.get(name) != wanted:
            self._desired.put_chain(where, name, wanted, subject)

    def _metadata(self, family: int) -> list[str]:
        metadata = self._layout.options.metadata
        if metadata is None or family != metadata[0].version:
            return []
        address, port = metadata
        to = f"{address_text(int(address), family)}:{port}"
        return [f"-i {each} -d {_METADATA} -j DNAT --to-destination {to}" for each in self._layout.workloads]

    def _dnat(self, family: int) -> list[str]:
        width = WIDTH[family]
        return [
            f"-d {address_text(int(each.external), family)}/{width} "
            f"-j DNAT --to-destination {address_text(int(each.internal), family)}"
            for each in self._nats[family]
        ]

    def _snat(self, family: int) -> list[str]:
        """What a workload sends to its own floating address comes back to it as from there."""
        seen_as: dict[int, int] = {}
        for each in self._nats[family]:
            seen_as.setdefault(int(each.internal), int(each.external))
        width = WIDTH[family]
        rules: list[str] = []
        for internal, external in sorted(seen_as.items()):
            address = f"{address_text(internal, family)}/{width}"
            rules.append(f"-s {address} -d {address} -j SNAT --to-source {address_text(external, family)}")
        return rules

    def _tunnels(self, family: int) -> list[str]:
        wanted = {"ipip": self._peers.is_ipip, "vxlan": self._peers.is_vxlan}
        devices = [name for (kind, of), name in DEVICE_NAMES.items() if of == family and wanted.get(kind)]
        return [f"-o {device} {_NOT_OF_DEVICE} -j MASQUERADE --random-fully" for device in devices]

    def _masquerade(self, family: int) -> list[str]:
        kind = f"nets{family}"
        is_wanted = POOLS not in self._closed and any(net.version == family for net in self._pools.masquerade)
        names: list[str] = []
        hosts = self._pools.hosts if self._layout.options.nat_spares_hosts else ()
        spared = (*self._pools.all, *map(IPNetwork, hosts))
        for identity, nets in (("masq", self._pools.masquerade), ("pools", spared)):
            name = set_name(kind, identity)
            names.append(name)
            if is_wanted:
                self._desired.put_set(name, NamedSet(kind, nets_set(nets, family)[1].elements), POOLS)
            elif name in self._desired.sets.sets:
                self._desired.drop_set(name)
        if not is_wanted:
            return []
        return self._from_pools(f"-m set --match-set {names[0]} src -m set ! --match-set {names[1]} dst", family)

    def _from_pools(self, match: str, family: int) -> list[str]:
        """What leaves the pools gets an address that the world knows. Only TCP and UDP have ports to choose."""
        options = self._layout.options
        if options.nat_interfaces:
            match = f"-o {options.nat_interfaces} {match}"
        address = ""
        if options.nat_address is not None and options.nat_address.version == family:
            address = address_text(int(options.nat_address), family)
        rules: list[str] = []
        if options.nat_ports is not None:
            ports = "{}-{}".format(*options.nat_ports)
            own = f"[{address}]" if family == 6 else address
            target = f"SNAT --to-source {own}:{ports}" if address else f"MASQUERADE --to-ports {ports}"
            rules += [f"-p {protocol} {match} -j {target} --random-fully" for protocol in _WITH_PORTS]
        target = f"SNAT --to-source {address}" if address else "MASQUERADE"
        return [*rules, f"{match} -j {target} --random-fully"]

"""What the table holds besides workloads and their rules: hooks, host endpoints, peers, pools and translation.

Small, however many workloads there are, so it is rendered as a whole whenever one of its inputs changed. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from netaddr import IPNetwork

from calico_core.dataplane.nftables.elements import merge_ranges, no_elements
from calico_core.dataplane.nftables.host_endpoints import render_hosts
from calico_core.dataplane.nftables.layout import Nat, base_chains, nat_chains
from calico_core.dataplane.reconcile import Chain, NamedSet
from calico_core.model.hoststate import HostPeers, HostPools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from calico_core.dataplane.nftables.verdicts import Verdicts
    from calico_core.interfaces.dataplane import DataplaneOptions
    from calico_core.model.hoststate import HostInterface, RulesId

POOLS, PEERS = "pools", "peers"


class HostPart(msgspec.Struct, frozen=True):
    """``subjects`` of chains and sets that are not the fixed part's; ``named``: rules that host endpoints name."""

    chains: dict[str, Chain]
    sets: dict[str, NamedSet]
    subjects: dict[str, str]
    named: frozenset[RulesId]
    problems: dict[str, str]

    @property
    def names(self) -> set[str]:
        return {*self.chains, *self.sets}


class HostInputs:
    """What the part is made from, as the batches so far have it."""

    def __init__(self, options: DataplaneOptions, families: Sequence[int], verdicts: Verdicts) -> None:
        self._options, self._families, self._verdicts = options, families, verdicts
        self.interfaces: dict[str, HostInterface] = {}
        self.pools, self.peers = HostPools(), HostPeers()

    def render(
        self,
        *,
        floats: bool,
        is_closed: Callable[[str], bool],
        problem_of: Callable[[HostInterface], str | None],
    ) -> HostPart:
        """``floats``: floating addresses are wanted, their maps stand. ``is_closed``: a subject the kernel refused."""
        options, families, verdicts = self._options, self._families, self._verdicts
        hosts = render_hosts(self.interfaces.values(), options, verdicts, families, problem_of)
        peers = HostPeers() if is_closed(PEERS) else self.peers
        masquerades = bool(self.pools.masquerade) and not is_closed(POOLS)
        nat = Nat(masquerades=masquerades, floats=floats, tunnels=Nat.tunnels_of(peers, families))
        chains = {
            **hosts.chains,
            **base_chains(options, families, verdicts, peers, hosts.has),
            **nat_chains(nat, options, families),
        }
        sets, subjects = dict(hosts.sets), dict(hosts.subjects)
        if masquerades:
            spared = (*self.pools.all, *map(IPNetwork, self.pools.hosts if options.nat_spares_hosts else ()))
            for prefix, nets in (("masq", self.pools.masquerade), ("pools", spared)):
                for family in families:
                    sets[f"{prefix}{family}"] = NamedSet(f"ranges{family}", _ranges(nets, family))
                    subjects[f"{prefix}{family}"] = POOLS
        if peers.is_ipip or peers.is_vxlan:
            for family in families:
                addresses = [int(each) for each in peers.addresses if each.version == family]
                kind = f"hosts{family}"
                empty = no_elements(kind)
                sets[f"peers{family}"] = NamedSet(kind, type(empty)(addresses))
                subjects[f"peers{family}"] = PEERS
        return HostPart(chains, sets, subjects, hosts.named, hosts.problems)


def _ranges(nets: Iterable[IPNetwork], family: int) -> frozenset[tuple[int, int]]:
    return frozenset(merge_ranges((net.first, net.last) for net in nets if net.version == family))

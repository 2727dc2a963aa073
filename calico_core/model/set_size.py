"""How many members a set has, as ``MaxIpsetSize`` counts them: dataplanes close what is beyond it (ADR 11), and
``calicoctl explain`` has to know which sets those are. A function of the members alone, so that no two hosts and no two
drivers differ. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from calico_core.model.hoststate import AddressSet, PortMember


def address_count(members: AddressSet) -> int:
    """Of the family with the most: each is a set of its own in the kernel. The network of all addresses counts twice:
    an ipset holds its halves."""
    if not members.nets:
        return max(len(members.v4), len(members.v6))
    nets: Counter[int] = Counter()
    for net in members.nets:
        nets[net.version] += 1 if net.prefixlen else 2
    return max(len(members.v4) + nets[4], len(members.v6) + nets[6])


def port_count(members: Iterable[PortMember]) -> int:
    """Likewise."""
    return max(Counter(each.version for each in members).values(), default=0)

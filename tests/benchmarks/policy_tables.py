"""What the tables of a host are made of in the benchmarks of the dataplane: sets nobody measured is in, rules that ask
for them, endpoints without an interface."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Literal

from netaddr import EUI, IPNetwork
from pyroaring import FrozenBitMap

from calico_core.model.hoststate import (
    AddressSet,
    HostRule,
    HostWorkload,
    PolicyList,
    RulesId,
    SetChange,
    SetId,
    TierPolicies,
)
from calico_core.model.keys import WorkloadEndpointKey

TCP = 6
FIRST = 0x0A000001


def set_id(number: int) -> SetId:
    return SetId(f"set-{number:016x}")


def new_sets(count: int, members: int) -> tuple[SetChange, ...]:
    """Of so many addresses each, which count up from 10.0.0.1."""
    address = itertools.count(FIRST)
    return tuple(
        SetChange(id=set_id(number), is_new=True, added=AddressSet(v4=FrozenBitMap(itertools.islice(address, members))))
        for number in range(count)
    )


def from_set(number: int, port: int, action: Literal["allow", "pass"]) -> HostRule:
    """TCP from the addresses of a set to one port."""
    return HostRule(action=action, protocol=TCP, ip_version=4, src_sets=(set_id(number),), dst_ports=((port, port),))


def one_tier(policies: Iterable[RulesId], *profiles: RulesId) -> PolicyList:
    """The policies in their order, and what follows where none of them decides."""
    return PolicyList(tiers=(TierPolicies(tier="default", policies=tuple(policies)),), profiles=profiles)


def a_workload(number: int, *, inbound: PolicyList, outbound: PolicyList, first: int = FIRST) -> HostWorkload:
    """``first``: the address of number 0."""
    return HostWorkload(
        key=WorkloadEndpointKey("host", "bench", f"w{number}", "eth0"),
        interface=f"cali{number}",
        is_active=True,
        mac=EUI(0x02_00_00_00_00_00 + number),
        nets=(IPNetwork((first + number, 32), version=4),),
        inbound=inbound,
        outbound=outbound,
    )

"""Whose source is the host's own once a packet has left it: masqueraded pools. Pure.

Source: felix specification 6.7.
"""

from __future__ import annotations

from collections.abc import Iterable

from calico_core.model.addresses import contains
from calico_core.model.pools import Pool
from calico_core.policy.explain import Packet


def is_masqueraded(packet: Packet, pools: Iterable[Pool]) -> bool:
    """From a pool that asks for it to what is in no pool."""
    is_asked_for = False
    for pool in pools:
        if contains(pool.cidr, packet.dst):
            return False
        is_asked_for = is_asked_for or (pool.masquerade and contains(pool.cidr, packet.src))
    return is_asked_for

"""What a planner answers: a transaction to try, or what it must know first. Planners are pure; :mod:`attempts`
carries their answers out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from netaddr import IPAddress, IPNetwork

from calico_core.ipam.draft import Draft
from calico_core.model.addresses import WIDTH
from calico_core.model.keys import BlockKey, Key


class Fresh:
    """What was read during this call. A cache may say "yes, try"; only fresh knowledge may say "no"."""

    def __init__(self) -> None:
        self.keys: set[Key] = set()
        self.loaded: set[int] = set()  # families whose pools, configuration and affinities were read
        self.listed: set[int] = set()  # families whose blocks were all listed
        self.claims_lost: int = 0


class Need(NamedTuple):
    """Read these keys at one revision; (re)load these families; list all blocks of these."""

    keys: tuple[Key, ...] = ()
    load: tuple[int, ...] = ()
    listing: tuple[int, ...] = ()


class Plan(NamedTuple):
    """``addresses`` are the answer if the draft it was written into commits. ``is_done`` tells, from what is known
    after a timeout, whether it did. ``is_partial``: more remains to be done by another transaction."""

    addresses: tuple[IPAddress, ...]
    is_done: Callable[[], bool]
    is_partial: bool = False
    was_free: tuple[IPAddress, ...] = ()


Planner = Callable[[Fresh, Draft], Plan | Need]
"""Writes into the draft, which may hold the changes of other requests already. After a :class:`Need` or an error the
draft is not used."""


def both(left: Need, right: Need) -> Need:
    """What two requests must know, to be read at once."""
    return Need(
        tuple(dict.fromkeys([*left.keys, *right.keys])),
        tuple(dict.fromkeys([*left.load, *right.load])),
        tuple(dict.fromkeys([*left.listing, *right.listing])),
    )


_SMALLEST_PREFIX = {4: 20, 6: 116}


def possible_blocks(address: IPAddress) -> tuple[BlockKey, ...]:
    """Where an address may be recorded, with no pool to tell the block size: all sizes a pool may have."""
    width = WIDTH[address.version]
    return tuple(
        BlockKey(IPNetwork((int(address), prefix), version=address.version).cidr)
        for prefix in range(_SMALLEST_PREFIX[address.version], width + 1)
    )

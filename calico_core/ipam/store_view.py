"""The datastore as :mod:`check` and :mod:`repair` read it: typed records of one revision, nothing left out silently."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from netaddr import IPAddress, IPNetwork

from calico_core.errors import InvalidRecord
from calico_core.interfaces.datastore import Versioned
from calico_core.ipam import blocks as block_operations
from calico_core.model import codec
from calico_core.model.blocks import Affinity, Block, Handle, IpamConfig
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import (
    AffinityKey,
    BgpHostAddressKey,
    BgpHostAsKey,
    BlockKey,
    HandleKey,
    HostIpKey,
    IpamConfigKey,
    Key,
    NodeStatusKey,
    PoolKey,
    WorkloadEndpointKey,
)
from calico_core.model.pools import Pool
from calico_core.model.record import Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from calico_core.interfaces.datastore import Entry

_LOOKED_AT = (PoolKey, BlockKey, AffinityKey, HandleKey, WorkloadEndpointKey, IpamConfigKey)
_OF_HOST = (HostIpKey, BgpHostAddressKey, BgpHostAsKey, NodeStatusKey)
_TUNNEL_HANDLES = ("ipip-tunnel-addr-", "vxlan-tunnel-addr-", "vxlan-v6-tunnel-addr-")


class Held(NamedTuple):
    """One assigned address. ``sequence`` is that of its assignment, None in blocks of writers that keep none."""

    address: IPAddress
    block: Block
    handle: str | None
    attributes: dict[str, Any]
    sequence: int | None

    @property
    def host(self) -> str | None:
        """Who assigned it, by its attributes; None when they do not say."""
        node = self.attributes.get("node")
        return node if isinstance(node, str) and node else None

    @property
    def orchestrator(self) -> str | None:
        """Set only where an endpoint record is to be expected for the address: an address that a foreign plugin got
        from us has none, and is in use all the same."""
        name = self.attributes.get("orchestrator")
        return name if isinstance(name, str) and name else None

    @property
    def interface(self) -> str | None:
        """The host side of the workload's interface; None when it was not known at the time."""
        name = self.attributes.get("interface")
        return name if isinstance(name, str) and name else None

    @property
    def is_tunnel(self) -> bool:
        return (self.handle or "").startswith(_TUNNEL_HANDLES)

    @property
    def assigned_at(self) -> float | None:
        """Seconds since the epoch; None when the attributes do not say."""
        text = self.attributes.get("timestamp")
        try:
            when = dt.datetime.fromisoformat(text) if isinstance(text, str) else None
        except ValueError:
            return None
        return when.replace(tzinfo=when.tzinfo or dt.UTC).timestamp() if when else None


class StoreView(Value, frozen=True):
    """``malformed`` maps paths of records we look at to the reason they do not decode; ``hosts`` are all that have
    any record of their own."""

    revision: int = 0
    pools: tuple[Versioned[Pool], ...] = ()
    blocks: tuple[Versioned[Block], ...] = ()
    affinities: tuple[Versioned[Affinity], ...] = ()
    handles: tuple[Versioned[Handle], ...] = ()
    endpoints: tuple[Versioned[WorkloadEndpoint], ...] = ()
    config: IpamConfig = IpamConfig()
    hosts: frozenset[str] = frozenset()
    malformed: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def malformed_blocks(self) -> frozenset[IPNetwork]:
        """What they hold is not known: nothing is concluded from a count that leaves them out."""
        keys = (parse_key(path) for path in self.malformed)
        return frozenset(key.cidr for key in keys if isinstance(key, BlockKey))

    def held(self) -> Iterator[Held]:
        """Every assigned address, block by block."""
        for found in self.blocks:
            yield from held_in(found.record)


def held_in(block: Block) -> Iterator[Held]:
    """What cools down is nobody's any more, and left out."""
    for ordinal, index in enumerate(block.allocations):
        if index is None or block.attributes[index].cooling_since is not None:
            continue
        held = block.attributes[index]
        yield Held(
            block_operations.address_at(block, ordinal),
            block,
            held.handle_id,
            held.secondary or {},
            block.sequence_for_allocation.get(str(ordinal)),
        )


def addresses_of(endpoint: WorkloadEndpoint) -> tuple[IPAddress, ...]:
    return tuple(IPAddress(net.first, net.version) for net in endpoint.nets)


def store_view(entries: Iterable[Entry], revision: int) -> StoreView:
    """``entries`` is everything under ``/calico/`` at ``revision``; keys of other concerns are passed over."""
    kinds: dict[type[Key], list[Versioned[Any]]] = {kind: [] for kind in _LOOKED_AT}
    malformed: dict[str, str] = {}
    hosts: set[str] = set()
    for entry in entries:
        key = parse_key(entry.key)
        if isinstance(key, _OF_HOST):
            hosts.add(key.host)
        if key is None or type(key) not in kinds:
            continue
        try:
            kinds[type(key)].append(Versioned(key, codec.decode(key, entry.value), entry.mod_revision))
        except InvalidRecord as error:
            malformed[entry.key] = f"{error.path}: {error.reason}" if error.path else error.reason
    config = kinds[IpamConfigKey]
    return StoreView(
        revision=revision,
        pools=tuple(kinds[PoolKey]),
        blocks=tuple(found for found in kinds[BlockKey] if not found.record.deleted),
        affinities=tuple(kinds[AffinityKey]),
        handles=tuple(kinds[HandleKey]),
        endpoints=tuple(kinds[WorkloadEndpointKey]),
        config=config[0].record if config else IpamConfig(),
        hosts=frozenset(hosts),
        malformed=malformed,
    )

"""A store with pools for tests of address management, and the laws its contents obey at every revision."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from netaddr import IPAddress, IPNetwork

from calico_core.datastore.records import TypedRecords
from calico_core.ipam import blocks
from calico_core.model import codec
from calico_core.model.blocks import Block, IpamConfig
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import IPAM, AffinityKey, BlockKey, HandleKey, IpamConfigKey, PoolKey
from calico_core.model.pools import Pool
from calico_core.model.workloads import AddressRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from calico_core.interfaces.datastore import Datastore
    from calico_core.ipam.allocator import BlockIpam


class Contents(NamedTuple):
    blocks: dict[IPNetwork, Block]
    affinities: dict[IPNetwork, str]
    handles: dict[str, dict[str, int]]

    def holders(self) -> dict[IPAddress, str | None]:
        held = {}
        for block in self.blocks.values():
            for ordinal in range(block.cidr.size):
                attributes = blocks.attributes_at(block, ordinal)
                if attributes is not None:
                    held[blocks.address_at(block, ordinal)] = attributes.handle_id
        return held

    def node_of(self, address: IPAddress) -> object:
        """The host for whose workload it was assigned; None when it is free."""
        block = next(block for cidr, block in self.blocks.items() if address in cidr)
        held = blocks.attributes_at(block, blocks.ordinal_of(block, address))
        return (held.secondary or {}).get("node") if held else None

    def of_handle(self, handle: str) -> set[IPAddress]:
        return {address for address, holder in self.holders().items() if holder == handle}


def add_pool(store: Datastore, cidr: str, **fields: object) -> IPNetwork:
    network = IPNetwork(cidr)
    TypedRecords(store).put(PoolKey(network), Pool(cidr=network, **fields))
    return network


def configure(store: Datastore, **fields: object) -> None:
    TypedRecords(store).put(IpamConfigKey(), IpamConfig(**fields))


def a_request(handle: str, num_v4: int = 0, num_v6: int = 0, *requested: str, **fields: object) -> AddressRequest:
    exact = tuple(IPAddress(text) for text in requested)
    return AddressRequest(handle=handle, num_v4=num_v4, num_v6=num_v6, requested=exact, **fields)


def contents(store: Datastore) -> Contents:
    found = Contents({}, {}, {})
    for entry in store.list(IPAM).entries:
        key = parse_key(entry.key)
        record = codec.decode(key, entry.value)
        match key:
            case BlockKey():
                found.blocks[key.cidr] = record
            case AffinityKey():
                assert key.cidr not in found.affinities, f"{key.cidr} has affinity to two hosts"
                assert record.state == "confirmed"
                found.affinities[key.cidr] = key.host
            case HandleKey():
                found.handles[key.handle] = record.block
    return found


def check_laws(store: Datastore) -> Contents:
    """Source: ipam specification 12, invariants 1 to 4 and 7. Decoding checks the inside of each block."""
    found = contents(store)
    ordered = sorted(found.blocks)
    for left, right in itertools.pairwise(ordered):
        assert left.version != right.version or left.last < right.first, f"{left} and {right} overlap"
    counted: dict[str, dict[str, int]] = {}
    for cidr, block in found.blocks.items():
        used = {index for index in block.allocations if index is not None}
        assert used == set(range(len(block.attributes))), f"{cidr} keeps attributes nobody refers to"
        assert not (block.is_empty and block.owner is None), f"{cidr} is empty and nobody's"
        for handle, number in blocks.counts(block).items():
            counted.setdefault(handle, {})[str(cidr)] = number
    assert found.handles == counted
    assert found.affinities == {cidr: block.owner for cidr, block in found.blocks.items() if block.owner}
    return found


def cost(ipam: BlockIpam, call: Callable[[], object]) -> tuple[int, int]:
    """Transactions and reads."""
    trips = ipam.round_trips
    before = trips.transactions, trips.reads
    call()
    return trips.transactions - before[0], trips.reads - before[1]

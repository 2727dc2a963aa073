"""Each code of the check, from the smallest store (and host) that has it; and a sound one that has none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.interfaces.datastore import Entry
from calico_core.ipam.check import CODES, check
from calico_core.ipam.local_view import LocalView
from calico_core.ipam.repair import repairs
from calico_core.ipam.store_view import StoreView, store_view
from calico_core.model import codec
from calico_core.model.blocks import Affinity, AllocationAttributes, Block, Handle, IpamConfig
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import (
    AffinityKey,
    BlockKey,
    HandleKey,
    HostIpKey,
    IpamConfigKey,
    Key,
    PoolKey,
    WorkloadEndpointKey,
)
from calico_core.model.pools import Pool

POOL, BLOCK = IPNetwork("10.0.0.0/24"), IPNetwork("10.0.0.0/30")
ADDRESS = IPAddress("10.0.0.1")
E1, E2 = (WorkloadEndpointKey("a", "cni", "pod", name) for name in ("e1", "e2"))


def a_block(cidr: IPNetwork = BLOCK, owner: str | None = "a", **held: str | None) -> Block:
    """``held``: ``o1="h1"`` puts the ordinal 1 in the hands of the handle h1 on host a."""
    entries = tuple(
        AllocationAttributes(handle_id=handle, secondary={"node": "a", "orchestrator": "cni"})
        for handle in held.values()
    )
    where = {int(name[1:]): index for index, name in enumerate(held)}
    allocations = tuple(where.get(ordinal) for ordinal in range(cidr.size))
    return Block(cidr=cidr, affinity=f"host:{owner}" if owner else None, allocations=allocations, attributes=entries)


def an_endpoint(*addresses: str, name: str = "cali1") -> WorkloadEndpoint:
    return WorkloadEndpoint(state="active", name=name, ipv4_nets=tuple(IPNetwork(f"{text}/32") for text in addresses))


def sound() -> dict[Key, Any]:
    """One pool, one block of host a, one address in use by one endpoint."""
    return {
        HostIpKey("a"): "192.0.2.1",
        PoolKey(POOL): Pool(cidr=POOL, block_size=30),
        BlockKey(BLOCK): a_block(o1="h1"),
        AffinityKey("a", BLOCK): Affinity(),
        HandleKey("h1"): Handle(block={str(BLOCK): 1}, id="h1"),
        E1: an_endpoint("10.0.0.1"),
    }


SOUND_HOST = LocalView(
    host="a",
    interfaces=frozenset({"lo", "eth0", "cali1"}),
    host_routes={ADDRESS: "cali1"},
    lists={"cni": {}},
)


def view(records: dict[Key, Any]) -> StoreView:
    """``None`` takes a record away, bytes are stored as they are."""
    merged = {**sound(), **records}
    entries = [
        Entry(key.path, value if isinstance(value, bytes) else codec.encode(value), 1, number)
        for number, (key, value) in enumerate(merged.items(), start=1)
        if value is not None
    ]
    return store_view(entries, len(entries))


def changed(block: Block, **secondary: object) -> Block:
    entries = tuple(
        msgspec.structs.replace(entry, secondary={**(entry.secondary or {}), **secondary}) for entry in block.attributes
    )
    return msgspec.structs.replace(block, attributes=entries)


def test_a_sound_store_and_host_have_no_findings() -> None:
    assert check(view({})) == ()
    assert check(view({}), SOUND_HOST) == ()
    assert repairs(view({})) == ()


OVERLAP = IPNetwork("10.0.0.0/29")
OTHER = IPNetwork("10.0.0.4/30")

STORE_ROWS: list[tuple[str, str, dict[Key, Any]]] = [
    ("record-malformed", BlockKey(OTHER).path, {BlockKey(OTHER): b'{"cidr": "10.0.0.4/30"}'}),
    ("record-malformed", HandleKey("h9").path, {HandleKey("h9"): b"?"}),
    ("blocks-overlap", str(OVERLAP), {BlockKey(OVERLAP): a_block(OVERLAP, None, o7="h1")}),
    ("address-held-twice", "10.0.0.1", {BlockKey(OVERLAP): a_block(OVERLAP, None, o1="h2")}),
    ("endpoints-share-address", "10.0.0.1", {E2: an_endpoint("10.0.0.1", name="cali2")}),
    ("endpoint-address-free", "10.0.0.2", {E2: an_endpoint("10.0.0.2", name="cali2")}),
    ("endpoint-address-of-other", "10.0.0.1", {BlockKey(BLOCK): changed(a_block(o1="h1"), node="b")}),
    ("handle-count-mismatch", "h1", {HandleKey("h1"): Handle(block={str(BLOCK): 2}, id="h1")}),
    ("handle-missing", "h1", {HandleKey("h1"): None}),
    ("handle-empty", "h2", {HandleKey("h2"): Handle(block={str(BLOCK): 1}, id="h2")}),
    ("handle-empty", "h2", {HandleKey("h2"): Handle(block={}, id="h2")}),
    ("address-without-handle", "10.0.0.2", {BlockKey(BLOCK): a_block(o1="h1", o2=None)}),
    ("address-without-endpoint", "10.0.0.1", {E1: None}),
    ("address-unproven", "10.0.0.1", {E1: None, BlockKey(BLOCK): changed(a_block(o1="h1"), orchestrator="")}),
    (
        "address-borrowed",
        "10.0.0.1",
        {
            BlockKey(BLOCK): a_block(owner="b", o1="h1"),
            AffinityKey("a", BLOCK): None,
            AffinityKey("b", BLOCK): Affinity(),
        },
    ),
    (
        "attributes-unused",
        str(BLOCK),
        {
            BlockKey(BLOCK): msgspec.structs.replace(
                a_block(o1="h1"), attributes=(*a_block(o1="h1").attributes, AllocationAttributes(handle_id="gone"))
            )
        },
    ),
    ("affinity-without-block", AffinityKey("a", OTHER).path, {AffinityKey("a", OTHER): Affinity()}),
    ("affinity-of-other-host", AffinityKey("b", BLOCK).path, {AffinityKey("b", BLOCK): Affinity()}),
    ("affinity-unconfirmed", AffinityKey("a", BLOCK).path, {AffinityKey("a", BLOCK): Affinity(state="pending")}),
    ("block-without-affinity", str(BLOCK), {AffinityKey("a", BLOCK): None}),
    ("block-outside-pools", str(BLOCK), {PoolKey(POOL): None}),
    ("block-of-other-size", str(BLOCK), {PoolKey(POOL): Pool(cidr=POOL, block_size=28)}),
    ("block-empty-ownerless", str(OTHER), {BlockKey(OTHER): a_block(OTHER, None)}),
    (
        "host-over-limit",
        "a",
        {
            IpamConfigKey(): IpamConfig(max_blocks_per_host=1),
            BlockKey(OTHER): a_block(OTHER, "a"),
            AffinityKey("a", OTHER): Affinity(),
        },
    ),
]


@pytest.mark.parametrize(("code", "subject", "records"), STORE_ROWS)
def test_what_the_store_alone_tells(code: str, subject: str, records: dict[Key, Any]) -> None:
    found = check(view(records))
    assert (code, subject) in {(finding.code, finding.object) for finding in found}
    finding = next(finding for finding in found if finding.code == code)
    assert (finding.severity, finding.fix) == CODES[code]
    assert finding.detail
    if code not in {"blocks-overlap", "address-held-twice"}:  # one cannot be without the other's trouble
        assert {each.code for each in found if each.severity != "info"} <= {code}


HOST_ROWS: list[tuple[str, str, dict[Key, Any], dict[str, Any]]] = [
    ("endpoint-without-interface", "a/cni/pod/e1", {}, {"interfaces": frozenset({"lo"}), "host_routes": {}}),
    ("endpoint-without-route", "a/cni/pod/e1", {}, {"host_routes": {}}),
    ("interface-without-endpoint", "cali9", {}, {"interfaces": SOUND_HOST.interfaces | {"cali9"}}),
    (
        "route-without-endpoint",
        "10.0.0.9",
        {},
        {"host_routes": {**SOUND_HOST.host_routes, IPAddress("10.0.0.9"): "cali1"}},
    ),
    ("listed-address-free", "10.0.0.2", {}, {"lists": {"mesos": {IPAddress("10.0.0.2"): "container c1"}}}),
]


@pytest.mark.parametrize(("code", "subject", "records", "host"), HOST_ROWS)
def test_what_the_host_tells(code: str, subject: str, records: dict[Key, Any], host: dict[str, Any]) -> None:
    found = check(view(records), msgspec.structs.replace(SOUND_HOST, **host))
    assert [(finding.code, finding.object) for finding in found] == [(code, subject)]


def test_every_code_has_a_row() -> None:
    assert {row[0] for row in (*STORE_ROWS, *HOST_ROWS)} == set(CODES)


def test_the_check_of_another_host_says_nothing_of_this_kernel() -> None:
    elsewhere = LocalView(host="b", interfaces=frozenset({"lo"}))
    assert check(view({}), elsewhere) == ()


def test_an_address_that_an_integration_lists_is_no_leak() -> None:
    listed = msgspec.structs.replace(
        SOUND_HOST, lists={"libnetwork": {ADDRESS: "network n1"}}, interfaces=frozenset({"lo"}), host_routes={}
    )
    assert check(view({E1: None}), listed) == ()


def test_the_tunnel_address_of_a_living_host_is_no_leak() -> None:
    tunnel = {E1: None, BlockKey(BLOCK): a_block(o1="ipip-tunnel-addr-a")}
    tunnel |= {HandleKey("h1"): None, HandleKey("ipip-tunnel-addr-a"): Handle(block={str(BLOCK): 1})}
    assert check(view(tunnel)) == ()
    assert [finding.code for finding in check(view({**tunnel, HostIpKey("a"): None}))] == ["address-without-endpoint"]


def test_nothing_is_concluded_from_counts_in_a_block_that_does_not_decode() -> None:
    broken = {BlockKey(BLOCK): b"{}", AffinityKey("a", BLOCK): Affinity()}
    assert {finding.code for finding in check(view(broken))} == {"record-malformed", "endpoint-address-free"}
    assert repairs(view(broken)) == ()


REPAIRED = [
    row
    for row in STORE_ROWS
    if row[0]
    in {
        "handle-count-mismatch",
        "handle-missing",
        "handle-empty",
        "affinity-without-block",
        "affinity-of-other-host",
        "affinity-unconfirmed",
        "block-without-affinity",
        "block-empty-ownerless",
    }
]


@pytest.mark.parametrize(("code", "subject", "records"), REPAIRED)
def test_repairs_lead_to_a_sound_store(code: str, subject: str, records: dict[Key, Any]) -> None:
    from calico_core.datastore.memory import MemoryDatastore
    from calico_core.datastore.records import TypedRecords

    store = MemoryDatastore()
    typed = TypedRecords(store)
    for key, value in {**sound(), **records}.items():
        if value is not None:
            typed.put(key, value)
    listing = store.list("/calico/")
    for repair in repairs(store_view(listing.entries, listing.revision)):
        assert repair.what
        assert store.transact(repair.preconditions, repair.operations).committed
        assert not store.transact(repair.preconditions, repair.operations).committed, "it holds once only"
    listing = store.list("/calico/")
    assert check(store_view(listing.entries, listing.revision)) == ()

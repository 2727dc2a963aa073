"""Messages byte for byte, as the kernel's headers lay them out (little-endian hosts)."""

from __future__ import annotations

import sys

import pytest

from calico_core.dataplane.linux.address_messages import add_address, parse_address
from calico_core.dataplane.linux.link_messages import (
    add_netkit,
    add_veth,
    delete_group,
    parse_link,
    set_link,
)
from calico_core.dataplane.linux.netlink import (
    attribute,
    nested,
    parse_attributes,
    parse_error,
    parse_messages,
    text,
    u32,
)
from calico_core.dataplane.linux.prefix import parse_prefix
from calico_core.dataplane.linux.route_messages import (
    RTN_BLACKHOLE,
    Route,
    add_route,
    delete_route,
    parse_route,
    replace_route,
    workload_route,
)

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="bytes are written for little-endian hosts")


def hexed(*parts: str) -> bytes:
    return bytes.fromhex("".join(parts).replace(" ", ""))


def test_veth_creation_carries_the_peer():
    request = add_veth("cali1", "eth0", mac=b"\xee" * 6, peer_mac=bytes(5) + b"\1", peer_namespace_fd=9)
    assert request.body == hexed(
        "00000000 00000000 00000000 00000000",
        "0a00 0300 63616c693100 0000",
        "0a00 0100 eeeeeeeeeeee 0000",
        "4400 1280",
        "0800 0100 76657468",  # "veth"
        "3800 0280",
        "3400 0180",  # VETH_INFO_PEER
        "00000000 00000000 00000000 00000000",
        "0900 0300 6574683000 000000",
        "0a00 0100 000000000001 0000",
        "0800 1c00 09000000",  # IFLA_NET_NS_FD
    )


def test_netkit_creation_says_how_it_forwards_and_carries_the_peer():
    request = add_netkit(
        "cali1", "eth0", mac=b"\xee" * 6, peer_mac=bytes(5) + b"\1", peer_namespace_fd=9, mtu_bytes=1440, queues=2
    )
    assert (request.type, request.flags) == (16, 0x600)
    size = "0800 0400 a0050000 0800 1f00 02000000 0800 2000 02000000"  # IFLA_MTU, NUM_TX_QUEUES, NUM_RX_QUEUES
    assert request.body == hexed(
        "00000000 00000000 00000000 00000000",
        "0a00 0300 63616c693100 0000",
        size,
        "0a00 0100 eeeeeeeeeeee 0000",
        "7800 1280",  # IFLA_LINKINFO, nested
        "0a00 0100 6e65746b6974 0000",  # IFLA_INFO_KIND "netkit"
        "6800 0280",  # IFLA_INFO_DATA, nested
        "0800 0500 00000000",  # IFLA_NETKIT_MODE, NETKIT_L2
        "0800 0300 00000000",  # IFLA_NETKIT_POLICY, NETKIT_PASS
        "0800 0400 00000000",  # IFLA_NETKIT_PEER_POLICY, NETKIT_PASS
        "4c00 0180",  # IFLA_NETKIT_PEER_INFO
        "00000000 00000000 00000000 00000000",  # ifinfomsg of the peer
        "0900 0300 6574683000 000000",
        size,
        "0a00 0100 000000000001 0000",
        "0800 1c00 09000000",  # IFLA_NET_NS_FD
    )


def test_link_up_changes_only_that_flag():
    request = set_link(index=7, is_up=True)
    assert request.body == hexed("00000000 07000000 01000000 01000000")
    assert set_link(index=7, is_up=False).body == hexed("00000000 07000000 00000000 01000000")
    assert set_link(index=7, mtu_bytes=1280).body[:16] == hexed("00000000 07000000 00000000 00000000")


def test_the_group_of_everybody_is_never_deleted():
    with pytest.raises(AssertionError):
        delete_group(0)


def test_workload_routes():
    v4 = add_route(workload_route(parse_prefix("10.0.0.1"), 3))
    assert (v4.type, v4.flags) == (24, 0x600)
    assert v4.body == hexed(
        "02 20 00 00 fe 50 fd 01 00000000",  # /32, main, protocol 80, scope link, unicast
        "0800 0f00 fe000000",
        "0800 0100 0a000001",
        "0800 0400 03000000",
    )
    v6 = replace_route(workload_route(parse_prefix("fd00::1"), 3))
    assert v6.flags == 0x500
    assert v6.body == hexed(
        "0a 80 00 00 fe 50 00 01 00000000",
        "0800 0f00 fe000000",
        "1400 0100 fd000000000000000000000000000001",
        "0800 0400 03000000",
        "0800 0600 00020000",  # metric 512
    )
    assert delete_route(workload_route(parse_prefix("10.0.0.1"), 3)).body[6] == 255  # any scope


@pytest.mark.parametrize(
    "route",
    [
        workload_route(parse_prefix("10.0.0.1"), 3),
        workload_route(parse_prefix("fd00::1"), 3),
        Route(destination=parse_prefix("0.0.0.0/0"), index=2, gateway=bytes((169, 254, 1, 1)), protocol=3),
        Route(destination=parse_prefix("::/0"), index=2, gateway=b"\xfe\x80" + bytes(13) + b"\1", metric=1024),
        Route(destination=parse_prefix("10.1.0.0/26"), type=RTN_BLACKHOLE, table=4711),
        Route(destination=parse_prefix("10.1.0.0/26"), index=1, gateway=bytes(4), is_onlink=True, table=300),
    ],
)
def test_a_route_is_parsed_from_what_it_is_written_as(route):
    assert parse_route(add_route(route).body) == route


def test_cloned_routes_are_skipped():
    body = bytearray(add_route(workload_route(parse_prefix("10.0.0.1"), 3)).body)
    body[8:12] = (0x200).to_bytes(4, "little")
    assert parse_route(bytes(body)) is None


def test_addresses_are_added_without_duplicate_detection():
    request = add_address(4, parse_prefix("fd00::1"))
    assert request.body[:8] == hexed("0a 80 02 00 04000000")
    assert parse_address(request.body).prefix == parse_prefix("fd00::1")
    assert add_address(4, parse_prefix("10.0.0.1")).body[:8] == hexed("02 20 00 00 04000000")


def test_attributes_are_padded_and_nested():
    assert attribute(1, b"abc") == hexed("0700 0100 616263 00")
    assert nested(2, u32(1, 5)) == hexed("0c00 0280 0800 0100 05000000")
    assert parse_attributes(nested(2, u32(1, 5)) + text(3, "x")) == {
        2: hexed("0800 0100 05000000"),
        3: b"x\0",
    }


@pytest.mark.parametrize("torn", ["", "04", "0000 0100", "0300 0100", "ff00 0100 01"])
def test_torn_attributes_end_the_parse(torn):
    assert parse_attributes(u32(9, 1) + hexed(torn)) == {9: hexed("01000000")}


def test_torn_messages_end_the_parse():
    whole = hexed("14000000 1000 0000 01000000 00000000 aabbccdd")
    assert list(parse_messages(whole + whole[:10])) == [(16, 0, 1, hexed("aabbccdd"))]
    assert list(parse_messages(hexed("ffff0000 1000 0000 01000000 00000000"))) == []


def test_errors_with_and_without_the_request_echoed():
    words = attribute(1, b"Unknown device type\0")
    capped = hexed("a1ffffff", "2c000000 1000 0506 01000000 00000000") + words
    assert parse_error(capped, 0x300) == (95, "Unknown device type")
    echoed = hexed("a1ffffff", "14000000 1000 0506 01000000 00000000 aabbccdd") + words
    assert parse_error(echoed, 0x200) == (95, "Unknown device type")
    assert parse_error(hexed("00000000") + bytes(16), 0x100) == (0, "")


def test_a_link_with_little_said_about_it():
    link = parse_link(hexed("00000000 05000000 00000000 00000000") + text(3, "cali1"))
    assert (link.index, link.name, link.kind, link.peer_namespace_id) == (5, "cali1", "", None)
    assert not link.is_up
    assert not link.has_carrier

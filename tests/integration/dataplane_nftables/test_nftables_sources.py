"""What a workload may send from beside its own addresses, as packets see it. Both drivers pass it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from netaddr import IPNetwork

from tests.integration.dataplane_nftables.conftest import ALLOWED_S
from tests.integration.dataplane_nftables.test_nftables_links import sysctl
from tests.integration.dataplane_nftables.test_nftables_traffic import _heard, _listener

if TYPE_CHECKING:
    from calico_core.model.hoststate import HostWorkload

pytestmark = pytest.mark.needs_root

DENIED_S = 0.2
ALLOWED = (IPNetwork("198.51.100.0/25"), IPNetwork("198.51.100.128/26"), IPNetwork("fd99::/64"))
#: Of each family: some that lie in a prefix, and some beside it.
INSIDE = {4: ("198.51.100.0", "198.51.100.7", "198.51.100.191"), 6: ("fd99::7",)}
BESIDE = {4: ("198.51.100.192", "10.65.0.77"), 6: ("fd99:0:0:1::7", "fd65::77")}


def with_prefixes(workload: Any, *prefixes: IPNetwork, **changes: object) -> HostWorkload:
    return msgspec.structs.replace(workload.endpoint(), allowed_source_prefixes=prefixes, **changes)


def carry(*workloads: Any) -> None:
    """Each gets all of the addresses: what it has is not what it may use."""
    for workload in workloads:
        for width, nodad, family in ((32, (), 4), (128, ("nodad",), 6)):
            for each in (*INSIDE[family], *BESIDE[family]):
                workload.run("ip", "address", "add", f"{each}/{width}", "dev", "eth0", *nodad)


def assert_heard(sender: Any, receiver: Any, wanted: set[str], *families: int) -> None:
    """Of all sources, these are those whose packets come through."""
    for family in families or (4, 6):
        own, kind = (receiver.v4, socket.AF_INET) if family == 4 else (receiver.v6, socket.AF_INET6)
        with receiver.socket(kind, socket.SOCK_DGRAM) as listener:
            listener.bind((own, 4000))
            for each in (*INSIDE[family], *BESIDE[family]):
                # one that asked in vain for its gateway waits a second before it asks again
                sender.run("ip", "-6", "neighbour", "flush", "dev", "eth0", "nud", "all")
                is_wanted = each in wanted
                assert _heard(sender, listener, own, each, is_expected=is_wanted) is is_wanted, each


def inside(*families: int) -> set[str]:
    return {each for family in families or (4, 6) for each in INSIDE[family]}


def test_a_prefix_passes_and_nothing_beside_it(lab: Any) -> None:
    a, b, c = lab.workload(), lab.workload(), lab.workload()
    carry(b, c)
    assert lab.start(a.endpoint(), with_prefixes(b, *ALLOWED), c.endpoint()).is_clean
    assert_heard(b, a, inside())
    assert_heard(c, a, set())  # they are another's
    # the kernel does not check the one any more: what it drops, policy drops
    assert [sysctl(lab, f"ipv4.conf.{each.interface}.rp_filter") for each in (a, b, c)] == ["1", "0", "1"]
    with _listener(a, a.v4) as listener:
        assert _heard(b, listener, a.v4, b.v4), "its own address"
    assert lab.dataplane.resync().healed == ()


def test_prefixes_come_and_go(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    carry(b)
    lab.start(a.endpoint(), b.endpoint())
    assert_heard(b, a, set())
    assert lab.apply(workloads=(with_prefixes(b, *ALLOWED),)).is_clean
    assert_heard(b, a, inside())
    assert lab.apply(workloads=(with_prefixes(b, *ALLOWED[2:]),)).is_clean
    assert_heard(b, a, inside(6))
    assert sysctl(lab, f"ipv4.conf.{b.interface}.rp_filter") == "1", "nothing of IPv4 is allowed"
    assert lab.apply(workloads=(with_prefixes(b, *ALLOWED[:1]),)).is_clean
    assert_heard(b, a, set(INSIDE[4][:2]))
    assert lab.apply(workloads=(b.endpoint(),)).is_clean
    assert_heard(b, a, set())
    assert sysctl(lab, f"ipv4.conf.{b.interface}.rp_filter") == "1"
    assert lab.dataplane.resync().healed == ()


def test_an_open_connection_ends_with_its_prefix(lab: Any) -> None:
    """Its packets are looked at before what is known of connections."""
    a, b = lab.workload(), lab.workload()
    carry(b)
    lab.start(a.endpoint(), with_prefixes(b, *ALLOWED))
    # answers have to find the way
    lab.host.run("ip", "route", "add", "198.51.100.7", "dev", b.interface, "scope", "link")
    with a.socket(socket.AF_INET, socket.SOCK_STREAM) as server, b.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        server.bind((a.v4, 80))
        server.listen()
        client.settimeout(ALLOWED_S)
        client.bind(("198.51.100.7", 0))
        client.connect((a.v4, 80))
        accepted, (source, _) = server.accept()
        with accepted:
            accepted.settimeout(ALLOWED_S)
            assert source == "198.51.100.7"
            client.send(b"x")
            assert accepted.recv(1) == b"x"
            lab.apply(workloads=(b.endpoint(),))
            client.send(b"y")
            accepted.settimeout(DENIED_S)
            with pytest.raises(TimeoutError):
                accepted.recv(1)


def test_the_mac_is_checked_with_it(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    carry(b)
    lab.start(a.endpoint(), with_prefixes(b, *ALLOWED))
    assert_heard(b, a, inside(4), 4)
    b.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
    # with its address an interface loses the neighbours it was given
    gateway = lab.host.run("cat", f"/sys/class/net/{b.interface}/address").strip()
    b.run("ip", "neighbour", "replace", "169.254.1.1", "lladdr", gateway, "dev", "eth0")
    assert_heard(b, a, set(), 4)  # another MAC
    lab.apply(workloads=(with_prefixes(b, *ALLOWED, mac=None),))
    assert_heard(b, a, inside(4), 4)  # without one in the record nobody asks


def test_everything_may_be_allowed(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    carry(b)
    assert lab.start(a.endpoint(), with_prefixes(b, IPNetwork("0.0.0.0/0"))).is_clean
    assert_heard(b, a, {*INSIDE[4], *BESIDE[4]})
    assert lab.apply(workloads=(with_prefixes(b, IPNetwork("::/0")),)).is_clean
    assert_heard(b, a, {*INSIDE[6], *BESIDE[6]})
    assert lab.dataplane.resync().healed == ()


def test_an_address_that_another_has_needs_a_prefix_too(lab: Any) -> None:
    """The kernel's filter, which would see to it, is off."""
    a, b, c = lab.workload(), lab.workload(), lab.workload()
    shared = IPNetwork("10.65.0.77/32")
    carry(c)
    first, second = ((*each.nets, shared) for each in (b, c))
    lab.start(
        a.endpoint(),
        msgspec.structs.replace(b.endpoint(), nets=first),
        with_prefixes(c, *ALLOWED, nets=second),
    )
    assert_heard(c, a, inside(4), 4)
    assert lab.apply(workloads=(with_prefixes(c, shared, nets=second),)).is_clean
    assert_heard(c, a, {str(shared.ip)}, 4)
    lab.apply(workloads=(with_prefixes(c, *ALLOWED, nets=second),), removed_workloads=(b.key,))
    assert_heard(c, a, {*inside(4), str(shared.ip)}, 4)  # it is its own now


def test_who_is_closed_or_gone_is_checked_by_the_kernel_again(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    carry(b)
    lab.start(a.endpoint(), with_prefixes(b, *ALLOWED))
    check = f"ipv4.conf.{b.interface}.rp_filter"
    for closing in (
        {"workloads": (with_prefixes(b, *ALLOWED, is_active=False),)},
        {"removed_workloads": (b.key,)},
    ):
        assert sysctl(lab, check) == "0"
        assert lab.apply(**closing).is_clean
        assert sysctl(lab, check) == "1"
        assert_heard(b, a, set())
        lab.apply(workloads=(with_prefixes(b, *ALLOWED),))
        assert_heard(b, a, inside(6), 6)
    lab.dataplane.purge()
    assert sysctl(lab, check) == "1", "policy is gone"


def test_a_restart_finds_what_it_left_and_ends_what_it_is_not_told(lab: Any) -> None:
    a, b, c = lab.workload(), lab.workload(), lab.workload()
    carry(b, c)
    lab.start(a.endpoint(), with_prefixes(b, *ALLOWED), with_prefixes(c, *ALLOWED))
    lab.restart()
    assert_heard(b, a, inside(4), 4)  # the kernel keeps enforcing
    assert lab.start(a.endpoint(), with_prefixes(b, *ALLOWED), c.endpoint()).is_clean
    assert_heard(b, a, inside())
    assert_heard(c, a, set())
    assert [sysctl(lab, f"ipv4.conf.{each.interface}.rp_filter") for each in (b, c)] == ["0", "1"]
    # somebody else's doing
    lab.host.run("sysctl", "-qw", f"net.ipv4.conf.{b.interface}.rp_filter=1")
    assert_heard(b, a, set(), 4)
    assert lab.dataplane.resync().healed == (f"sysctl ipv4/conf/{b.interface}/rp_filter",)
    assert_heard(b, a, inside(4), 4)


def test_an_interface_that_comes_later_has_it_too(lab: Any) -> None:
    a, b = lab.workload(), lab.unwired()
    lab.start(a.endpoint(), with_prefixes(b, *ALLOWED))
    lab.wire(b)
    carry(b)
    assert lab.dataplane.resync().is_clean
    assert_heard(b, a, inside())


@pytest.mark.parametrize("value", ["1", "2"])
def test_a_filter_of_the_whole_host_drops_ipv4_all_the_same(lab: Any, value: str) -> None:
    """Why the node warns of it: the kernel goes by the higher value, and loose is no looser on an interface without
    an address."""
    a, b = lab.workload(), lab.workload()
    carry(b)
    lab.host.run("sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={value}")
    assert lab.start(a.endpoint(), with_prefixes(b, *ALLOWED)).is_clean
    assert_heard(b, a, inside(6))

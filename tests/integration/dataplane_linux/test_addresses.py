"""Addresses of the host's interfaces, as they come, go and are renamed."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPAddress

from calico_core.dataplane.linux.addresses import AddressMonitor
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.dataplane_linux.conftest import Namespace

pytestmark = pytest.mark.needs_root
PREFIXES = ("cali", "tap")
Told = list[tuple[str, frozenset[IPAddress] | None]]


@pytest.fixture
def told(host: Namespace) -> Iterator[Told]:
    """What a monitor tells, begun with one interface there."""
    ip(host, "link", "add", "up0", "type", "bridge")
    ip(host, "address", "add", "192.0.2.1/24", "dev", "up0")
    heard: Told = []
    monitor = AddressMonitor(
        lambda name, addresses: heard.append((name, addresses)), prefixes=PREFIXES, namespace_fd=host.fd
    )
    monitor.start()
    yield heard
    monitor.stop()
    monitor.stop()


def ip(namespace: Namespace, *argv: str) -> None:
    subprocess.run(["ip", "-n", namespace.name, *argv], check=True, capture_output=True)


def of(*addresses: str) -> frozenset[IPAddress]:
    return frozenset(map(IPAddress, addresses))


def test_what_is_there_is_told_at_once(told: Told) -> None:
    assert ("up0", of("192.0.2.1")) in told
    assert ("lo", frozenset()) in told


def test_changes_are_told(host: Namespace, told: Told) -> None:
    ip(host, "address", "add", "2001:db8::1/64", "dev", "up0")
    eventually(lambda: told[-1] == ("up0", of("192.0.2.1", "2001:db8::1")))
    ip(host, "address", "del", "192.0.2.1/24", "dev", "up0")
    eventually(lambda: told[-1] == ("up0", of("2001:db8::1")))
    ip(host, "link", "del", "up0")
    eventually(lambda: told[-1] == ("up0", None))
    ip(host, "link", "add", "up1", "type", "bridge")
    ip(host, "address", "add", "192.0.2.9/24", "dev", "up1")
    eventually(lambda: told[-1] == ("up1", of("192.0.2.9")))


def test_a_renamed_interface_is_another(host: Namespace, told: Told) -> None:
    ip(host, "link", "set", "up0", "name", "up7")
    eventually(lambda: told[-2:] == [("up0", None), ("up7", of("192.0.2.1"))])
    ip(host, "link", "set", "up7", "name", "cali7")
    eventually(lambda: told[-1] == ("up7", None))


def test_workloads_are_not_told_of(host: Namespace, told: Told) -> None:
    before = len(told)
    ip(host, "link", "add", "cali1", "type", "bridge")
    ip(host, "address", "add", "192.0.2.7/32", "dev", "cali1")
    ip(host, "address", "add", "192.0.2.8/32", "dev", "up0")
    eventually(lambda: told[-1] == ("up0", of("192.0.2.1", "192.0.2.8")))
    assert len(told) == before + 1


def test_an_address_stays_while_one_of_its_prefixes_does(host: Namespace, told: Told) -> None:
    ip(host, "address", "add", "192.0.2.1/32", "dev", "up0")
    ip(host, "address", "del", "192.0.2.1/24", "dev", "up0")
    ip(host, "address", "add", "192.0.2.2/24", "dev", "up0")
    eventually(lambda: told[-1] == ("up0", of("192.0.2.1", "192.0.2.2")))


def test_a_workloads_interface_that_is_renamed_is_told_with_its_addresses(host: Namespace, told: Told) -> None:
    ip(host, "link", "add", "cali1", "type", "bridge")
    ip(host, "address", "add", "192.0.2.7/32", "dev", "cali1")
    ip(host, "link", "set", "cali1", "name", "up1")
    eventually(lambda: told[-1] == ("up1", of("192.0.2.7")))


@pytest.fixture
def polled(host: Namespace) -> Iterator[Told]:
    """What a monitor tells that looks five times a second and hears no events, begun with one interface there."""
    ip(host, "link", "add", "up0", "type", "bridge")
    heard: Told = []
    monitor = AddressMonitor(
        lambda name, addresses: heard.append((name, addresses)),
        prefixes=PREFIXES,
        namespace_fd=host.fd,
        poll_s=0.2,
    )
    monitor.start()
    try:
        deafen(monitor)
        yield heard
    finally:
        monitor.stop()


def test_a_change_that_no_event_told_of_is_found_by_the_next_look(host: Namespace, polled: Told) -> None:
    ip(host, "address", "add", "192.0.2.1/24", "dev", "up0")
    eventually(lambda: polled[-1] == ("up0", of("192.0.2.1")))
    ip(host, "address", "del", "192.0.2.1/24", "dev", "up0")
    eventually(lambda: polled[-1] == ("up0", frozenset()))
    ip(host, "link", "del", "up0")
    eventually(lambda: polled[-1] == ("up0", None))


def test_another_link_of_the_same_name_is_found_by_the_next_look(host: Namespace, polled: Told) -> None:
    commands = ["link del up0", "link add up0 type bridge", "address add 192.0.2.5/24 dev up0"]
    subprocess.run(["ip", "-n", host.name, "-batch", "-"], input="\n".join(commands), text=True, check=True)
    eventually(lambda: polled[-1] == ("up0", of("192.0.2.5")))


def test_without_a_poll_only_events_tell(host: Namespace) -> None:
    """That deafening works, which the test above stands on."""
    heard: Told = []
    where: dict[str, Any] = {"prefixes": PREFIXES, "namespace_fd": host.fd}
    monitors = [
        AddressMonitor(lambda name, addresses: heard.append((name, addresses)), **where),
        AddressMonitor(lambda name, addresses: heard.append((f"deaf {name}", addresses)), **where),
    ]
    for monitor in monitors:
        monitor.start()
    try:
        deafen(monitors[1])
        ip(host, "link", "add", "up0", "type", "bridge")
        ip(host, "address", "add", "192.0.2.1/24", "dev", "up0")
        eventually(lambda: ("up0", of("192.0.2.1")) in heard)
        assert not [name for name, _ in heard if name == "deaf up0"]
    finally:
        for monitor in monitors:
            monitor.stop()


def deafen(monitor: AddressMonitor) -> None:
    """Leave the groups of links and addresses: from now on the kernel tells it nothing."""
    for group in (1, 5, 9):  # linux/rtnetlink.h: RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR
        monitor._monitor._socket.setsockopt(270, 2, group)  # SOL_NETLINK, NETLINK_DROP_MEMBERSHIP

"""A container may talk as soon as its interface is made, however busy the kernel is with others."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from netaddr import IPNetwork

from calico_core.dataplane.linux import netns
from calico_core.dataplane.linux.wiring import VethWiring
from calico_core.model.workloads import WiringRequest

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

ATTACHES, BUSY_THREADS = 300, 4
ETH_P_ALL = 3


def a_request(number: int, namespace_fd: int) -> WiringRequest:
    return WiringRequest(
        interface=f"cali{number}",
        container_interface=f"eth{number}",
        namespace_fd=namespace_fd,
        namespace="a container",
        addresses=(IPNetwork(f"10.65.0.{number}/32"),),
    )


@contextlib.contextmanager
def busy_with_interfaces(host: Any, container: Any) -> Iterator[None]:
    """The kernel's lock over interfaces is taken all the time, as where many pods come and go."""
    stop = threading.Event()

    def come_and_go(number: int) -> None:
        with contextlib.closing(VethWiring(host.fd)) as wiring:
            while not stop.is_set():
                wiring.attach(a_request(number, container.fd))
                wiring.detach(f"cali{number}")

    threads = [threading.Thread(target=come_and_go, args=(10 + number,)) for number in range(BUSY_THREADS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_first_packet_of_a_container_leaves_it(host, container, make_namespace) -> None:
    lost: list[int] = []
    with (
        contextlib.closing(VethWiring(host.fd)) as wiring,
        netns.socket_in(host.fd, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sniffer,
        busy_with_interfaces(make_namespace(), make_namespace()),
    ):
        sniffer.settimeout(2)
        for number in range(ATTACHES):
            wiring.attach(a_request(1, container.fd))
            token = f"first packet {number:04}".encode()
            with netns.socket_in(container.fd, socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(token, ("192.0.2.1", 9))
            if not _hears(sniffer, token):
                lost.append(number)
            wiring.detach("cali1")
    assert lost == []


def _hears(sniffer: socket.socket, token: bytes) -> bool:
    try:
        while token not in sniffer.recv(2048):
            pass
    except TimeoutError:
        return False
    return True

"""From attach to the first permitted packet there is never a moment when a forbidden one passes."""

from __future__ import annotations

import socket
import threading
import time
from typing import Self

import pytest

from calico_core.lab.workload import LabWorkload
from tests.e2e.observing import MakeLab
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root
PORT = 9000


class Flood:
    """Datagrams as fast as a thread can send them, from before the target has its address; the target counts."""

    def __init__(self, source: LabWorkload, target: LabWorkload, address: str) -> None:
        self._sender = source.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sender.setblocking(False)
        self._receiver = target.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._receiver.bind(("0.0.0.0", PORT))
        self._receiver.settimeout(0.05)
        self._address = (address, PORT)
        self._stop = threading.Event()
        self.sent = self.arrived = 0
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._receive)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        self._sender.close()
        self._receiver.close()

    def wait_sent(self, more: int) -> None:
        goal = self.sent + more
        eventually(lambda: self.sent >= goal, within_s=60)

    def wait_arrived(self) -> None:
        eventually(lambda: self.arrived)

    def _send(self) -> None:
        while not self._stop.is_set():
            try:
                self._sender.sendto(b"x", self._address)
                self.sent += 1
            except OSError:  # no route yet, or the queue is full
                time.sleep(0.0002)

    def _receive(self) -> None:
        while not self._stop.is_set():
            try:
                self._receiver.recv(16)
                self.arrived += 1
            except TimeoutError:
                continue


def test_a_flood_that_starts_before_the_attach_counts_zero(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    host = lab.hosts[0]
    stranger = lab.add_workload(host)
    stranger.attach(network="other")
    for number in range(3):
        target = lab.add_workload(host)
        address = f"192.168.200.{10 + number}"
        back = str(stranger.addresses[0])
        with Flood(stranger, target, address) as towards, Flood(target, stranger, back) as away:
            towards.wait_sent(500)
            target.attach(network="net1", cni_args={"IP": address})
            towards.wait_sent(3000)
            away.wait_sent(1000)
            assert (towards.arrived, away.arrived) == (0, 0)
            if number == 2:  # the same flood is seen once it is permitted
                host.calicoctl("profile", "net1", "rule", "add", "inbound", "allow", "from", "tag", "other")
                towards.wait_arrived()

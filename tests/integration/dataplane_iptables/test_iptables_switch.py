"""From one driver to the other under traffic: what policy permits goes on, what it denies never passes."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from calico_core.dataplane.iptables.driver import IptablesDataplane
from calico_core.dataplane.nftables.driver import NftablesDataplane
from calico_core.model.hoststate import HostChanges, HostRule, HostRules, PolicyList
from tests.integration.dataplane_nftables.conftest import ANY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from calico_core.interfaces.dataplane import Dataplane

pytestmark = pytest.mark.needs_root

_EACH_S = 0.001
PORT = 4000


class Flow:
    """Numbered packets of many connections, one a millisecond, and those that arrived."""

    def __init__(self, stack: contextlib.ExitStack, sender: Any, receiver: Any) -> None:
        self.listener = stack.enter_context(receiver.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.listener.bind((receiver.v4, PORT))
        self.listener.settimeout(0.5)
        self._sender, self._to = sender, (receiver.v4, PORT)
        self.sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        """A socket for each packet, so that each is a connection that policy decides."""
        while not self._stop.is_set():
            with self._sender.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.sendto(self.sent.to_bytes(4, "big"), self._to)
            self.sent += 1
            time.sleep(_EACH_S)

    def finish(self) -> set[int]:
        """The numbers that arrived."""
        self._stop.set()
        self._thread.join()
        arrived: set[int] = set()
        with contextlib.suppress(TimeoutError):
            while True:
                arrived.add(int.from_bytes(self.listener.recv(16), "big"))
        return arrived


@contextlib.contextmanager
def _flows(lab: Any, sender: Any, *receivers: Any) -> Iterator[list[Flow]]:
    with contextlib.ExitStack() as stack:
        flows: list[Flow] = []
        try:
            flows += [Flow(stack, sender, receiver) for receiver in receivers]
            yield flows
        finally:
            for flow in flows:
                flow.finish()


def _wait_for(flows: list[Flow], more: int = 50) -> None:
    wanted = [flow.sent + more for flow in flows]
    deadline = time.monotonic() + 30
    while any(flow.sent < each for flow, each in zip(flows, wanted, strict=True)):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_switch_and_back_without_a_gap(lab: Any) -> None:
    a, b, c = lab.workload(), lab.workload(), lab.workload()
    allow = HostRule(action="allow")
    state = HostChanges(
        is_complete=True,
        rules=(HostRules(id=ANY, inbound=(allow,), outbound=(allow,)),),
        workloads=(a.endpoint(), b.endpoint(), c.endpoint(inbound=PolicyList())),
    )

    def nftables() -> Dataplane:
        return NftablesDataplane(lab.options, lab.host.fd)

    with contextlib.closing(nftables()) as first:
        assert first.apply(state).is_clean
        assert b.reaches(a.v4, 80)
        with _flows(lab, b, a, c) as (permitted, denied):
            _wait_for([permitted, denied])
            for _ in itertools.repeat(None, 2):
                assert lab.dataplane.apply(state).is_clean
                lab.nft("delete", "table", "inet", "calico")
                _wait_for([permitted, denied])
                with contextlib.closing(nftables()) as second:
                    assert second.apply(state).is_clean
                    IptablesDataplane.remove_policy(lab.host.fd)
                    assert "calico-" not in lab.save()
                    _wait_for([permitted, denied])
                # as the runtime does, each driver starts from what stands
                lab.restart()
            arrived, passed = permitted.finish(), denied.finish()
            assert permitted.sent > 200
            assert set(range(permitted.sent)) - arrived == set()
            assert passed == set()


def test_the_other_backend_is_cleaned_too(lab: Any) -> None:
    a = lab.workload()
    lab.start(a.endpoint())
    IptablesDataplane.remove_policy(lab.host.fd)
    IptablesDataplane.remove_policy(lab.host.fd)
    assert "calico-" not in lab.save()
    assert "calico-" not in lab.save(family=6)
    assert lab.ipset("save") == ""
    assert set(lab.dataplane.wiring().routes(a.interface)) == set(a.nets), "routes are the other driver's now"

"""Journey C with a routing driver that only remembers: from records to what the daemon is told."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.errors import DaemonDown
from calico_core.interfaces.routing import Routing, RoutingOptions, RoutingState, RoutingStatus
from calico_core.model.keys import BgpHostAddressKey
from calico_core.node import router as module
from calico_core.node import startup
from calico_core.node.router import Router
from calico_core.settings import Settings
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


class RememberingRouting(Routing):
    """``error`` is raised by every call until it is None."""

    def __init__(self) -> None:
        self.states: list[RoutingState] = []
        self.error: Exception | None = None

    @classmethod
    def open(cls, options: RoutingOptions) -> RememberingRouting:
        return cls()

    def configure(self, state: RoutingState) -> None:
        if self.error is not None:
            raise self.error
        self.states.append(state)

    def status(self) -> RoutingStatus:
        return RoutingStatus(driver="memory", is_running=True)

    def close(self, *, stop_daemon: bool) -> None:
        pass


class AgentsWord:
    def __init__(self, *, is_trusted: bool) -> None:
        self.is_trusted = is_trusted
        self.asked = threading.Semaphore(0)

    def trusts_store(self) -> bool:
        self.asked.release()
        return self.is_trusted

    def is_asked_again(self) -> None:
        """Twice more at least: the first may be under way already."""
        while self.asked.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self.asked.acquire(timeout=20)


@pytest.fixture
def records() -> TypedRecords:
    return TypedRecords(MemoryDatastore())


@pytest.fixture
def routing() -> RememberingRouting:
    return RememberingRouting()


@pytest.fixture
def router(records: TypedRecords, routing: RememberingRouting, monkeypatch: pytest.MonkeyPatch) -> Iterator[Router]:
    monkeypatch.setattr(module, "_MIN_INTERVAL_S", 0.01)
    monkeypatch.setattr(module, "_RETRY_S", 0.05)
    _host(records, "rack-a", "192.0.2.1")
    made = Router(store=records.store, host="rack-a", routing=routing)
    yield made
    made.stop()


def test_a_new_host_becomes_a_peer_and_goes_again(
    records: TypedRecords, routing: RememberingRouting, router: Router
) -> None:
    router.start()
    eventually(lambda: routing.states)
    assert routing.states[0].peers == ()
    assert routing.states[0].ipv4 == IPAddress("192.0.2.1")
    _host(records, "rack-b", "192.0.2.2")
    eventually(lambda: [peer.ip for peer in routing.states[-1].peers] == [IPAddress("192.0.2.2")])
    records.delete(BgpHostAddressKey("rack-b", 4))
    eventually(lambda: routing.states[-1].peers == ())


def test_no_peer_goes_while_the_agent_does_not_trust_the_store(
    records: TypedRecords, routing: RememberingRouting
) -> None:
    agent = AgentsWord(is_trusted=True)
    for host, address in (("rack-a", "192.0.2.1"), ("rack-b", "192.0.2.2")):
        _host(records, host, address)
    router = Router(store=records.store, host="rack-a", routing=routing, trusts_store=agent.trusts_store)
    router.start()
    try:
        eventually(lambda: routing.states)
        agent.is_trusted = False
        records.delete(BgpHostAddressKey("rack-b", 4))
        _host(records, "rack-c", "192.0.2.3")
        eventually(lambda: len(routing.states[-1].peers) == 2)
        agent.is_asked_again()
        assert len(routing.states) == 2, "it is not configured anew meanwhile"
        assert IPAddress("192.0.2.2") in {peer.ip for peer in routing.states[-1].peers}
        agent.is_trusted = True
        eventually(lambda: [peer.ip for peer in routing.states[-1].peers] == [IPAddress("192.0.2.3")])
    finally:
        router.stop()


def test_nothing_is_begun_with_before_the_agent_trusts_the_store(
    records: TypedRecords, routing: RememberingRouting
) -> None:
    """Of a store that lost its records there is no deletion to be heard in a new life of the node."""
    agent = AgentsWord(is_trusted=False)
    _host(records, "rack-a", "192.0.2.1")
    router = Router(store=records.store, host="rack-a", routing=routing, trusts_store=agent.trusts_store)
    router.start()
    try:
        agent.is_asked_again()
        assert routing.states == []
        _host(records, "rack-b", "192.0.2.2")
        agent.is_asked_again()
        assert routing.states == []
        agent.is_trusted = True
        eventually(lambda: [peer.ip for state in routing.states for peer in state.peers] == [IPAddress("192.0.2.2")])
        agent.is_trusted = False
        _host(records, "rack-c", "192.0.2.3")
        eventually(lambda: len(routing.states[-1].peers) == 2)
    finally:
        router.stop()


@pytest.mark.parametrize("error", [DaemonDown("/run/bird.ctl", "refused"), RuntimeError("a bug of the driver")])
def test_what_fails_is_said_and_tried_again(routing: RememberingRouting, router: Router, error: Exception) -> None:
    routing.error = error
    router.start()
    eventually(lambda: router.last_error == str(error))
    routing.error = None
    eventually(lambda: routing.states)
    eventually(lambda: router.last_error == "")
    assert router.is_alive


def test_stop_ends_both_threads(router: Router) -> None:
    router.start()
    assert router.is_alive
    router.stop()
    assert not router.is_alive
    router.stop()


def _host(records: TypedRecords, host: str, ip: str) -> None:
    startup.claim_host(records, host=host, ipv4=IPAddress(ip), ipv6=None, settings=Settings())

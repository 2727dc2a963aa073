"""What an etcd in trouble looks like to a caller: which endpoint, why, and whether a write may have landed."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from calico_core.datastore.etcd3 import Etcd3Datastore
from calico_core.datastore.etcd3_watch import Etcd3Watch
from calico_core.errors import InvalidSettings, Unavailable
from calico_core.interfaces.datastore import Batch, DatastoreOptions, Event, Lost, Put
from tests.doubles.ports import free_ports
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import EtcdServer


@pytest.fixture
def open_store() -> Iterator[Callable[..., Etcd3Datastore]]:
    opened: list[Etcd3Datastore] = []

    def make(url: str, **options: object) -> Etcd3Datastore:
        opened.append(Etcd3Datastore.open(url, DatastoreOptions(**{"timeout_s": 2.0, **options})))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


def test_a_closed_port_is_named_and_nothing_was_applied(
    open_store: Callable[..., Etcd3Datastore], refusing: str, capfd: pytest.CaptureFixture[str]
) -> None:
    store = open_store(f"etcd3://{refusing}")
    calls = [
        lambda: store.get("/calico/a"),
        lambda: store.list("/calico/"),
        lambda: store.put("/calico/a", b""),
        lambda: store.watch("/calico/", 0),
        lambda: store.lease(5),
        store.identity,
    ]
    for call in calls:
        with pytest.raises(Unavailable, match="connection refused") as refused:
            call()
        assert refused.value.endpoint == refusing
        assert not refused.value.maybe_applied
    assert capfd.readouterr().err == ""


def test_every_call_is_bounded_and_a_write_is_uncertain(
    etcd: EtcdServer, open_store: Callable[..., Etcd3Datastore], silent: str
) -> None:
    store = open_store(etcd.url, timeout_s=1.0)
    revision = store.put("/calico/a", b"1")
    etcd.pause()
    try:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="timeout") as refused:
            store.get("/calico/a")
        assert not refused.value.maybe_applied
        with pytest.raises(Unavailable, match="timeout") as refused:
            store.compare_and_swap("/calico/a", b"2", revision)
        assert refused.value.maybe_applied
        assert refused.value.endpoint == etcd.endpoint
        with pytest.raises(Unavailable, match="timeout"):
            open_store(f"etcd3://{silent}", timeout_s=0.5).get("/calico/a")
        assert time.monotonic() - began < 10
    finally:
        etcd.resume()


def test_a_silent_store_is_not_waited_for_again_and_again(
    etcd: EtcdServer, open_store: Callable[..., Etcd3Datastore]
) -> None:
    store = open_store(etcd.url, timeout_s=3.0)
    store.put("/calico/a", b"1")
    etcd.pause()
    try:
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(Unavailable, match="timeout"):
                store.get("/calico/a")
        assert 4.5 < time.monotonic() - began < 8.5, "three times the full time are 9"
    finally:
        etcd.resume()
    deadline = time.monotonic() + 10
    while True:
        try:
            store.get("/calico/a")
            break
        except Unavailable:
            assert time.monotonic() < deadline
    etcd.pause()
    try:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="timeout"):
            store.put("/calico/a", b"2")
        assert time.monotonic() - began > 2.5  # it answered since: the full time again
    finally:
        etcd.resume()


def test_the_next_endpoint_takes_over(
    etcd: EtcdServer, open_store: Callable[..., Etcd3Datastore], refusing: str, silent: str
) -> None:
    for _ in range(6):  # the order is random: with 6 tries the good one is seldom always first
        store = open_store(f"etcd3://{refusing},{etcd.endpoint},{silent}", timeout_s=1.5)
        assert store.get("/calico/none") is None
        store.put("/calico/a", b"1")
        watch = store.watch("/calico/", store.list("/calico/").revision)
        store.put("/calico/a", b"2")
        assert isinstance(watch.next(30), Batch)


def test_a_lost_server_ends_watches_and_a_returning_one_serves(
    etcd: EtcdServer, open_store: Callable[..., Etcd3Datastore]
) -> None:
    store = open_store(etcd.url)
    revision = store.put("/calico/a", b"1")
    watches = [store.watch("/calico/", revision), store.watch("/calico/b/", revision)]
    etcd.stop()
    for watch in watches:
        message = watch.next(30)
        assert isinstance(message, Lost)
        assert etcd.endpoint in message.reason
        assert watch.next(0) is None
    with pytest.raises(Unavailable):
        store.get("/calico/a")
    etcd.start()
    entry = None
    deadline = time.monotonic() + 10
    while entry is None:
        try:
            entry = store.get("/calico/a")
        except Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert entry.value == b"1"
    again = store.watch("/calico/", revision)
    store.put("/calico/a", b"2")
    assert isinstance(again.next(30), Batch)


def test_tls_against_a_plain_server_is_unavailable(
    etcd: EtcdServer, open_store: Callable[..., Etcd3Datastore], tmp_path: Path
) -> None:
    store = open_store(etcd.url.replace("etcd3://", "etcd3s://"))
    with pytest.raises(Unavailable) as refused:
        store.put("/calico/a", b"")
    assert refused.value.endpoint == etcd.endpoint
    assert not refused.value.maybe_applied
    assert "TLS" in refused.value.cause


def test_users_and_permissions(etcd: EtcdServer, open_store: Callable[..., Etcd3Datastore]) -> None:
    def etcdctl(*arguments: str) -> None:
        subprocess.run(
            ["etcdctl", f"--endpoints={etcd.endpoint}", *arguments],
            check=True, env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"}, capture_output=True, timeout=20,
        )  # fmt: skip

    etcdctl("user", "add", "root:secret")
    etcdctl("user", "grant-role", "root", "root")
    etcdctl("user", "add", "node:word")
    etcdctl("role", "add", "calico")
    etcdctl("role", "grant-permission", "calico", "--prefix=true", "readwrite", "/calico/")
    etcdctl("user", "grant-role", "node", "calico")
    etcdctl("auth", "enable")
    try:
        node = open_store(etcd.url, username="node", password="word")
        revision = node.put("/calico/a", b"1")
        watch = node.watch("/calico/", revision - 1)  # the history before may be compacted: others use this server
        assert isinstance(watch.next(30), Batch)
        for store, key in [
            (node, "/elsewhere"),
            (open_store(etcd.url, username="node", password="wrong"), "/calico/a"),
            (open_store(etcd.url), "/calico/a"),
        ]:
            with pytest.raises(Unavailable, match="permission denied") as refused:
                store.put(key, b"")
            assert not refused.value.maybe_applied
        node._cluster._token = "gone.1"  # etcd forgets tokens when it restarts
        assert node.get("/calico/a") is not None
    finally:
        etcdctl("--user=root:secret", "auth", "disable")
        for arguments in (("user", "delete", "node"), ("user", "delete", "root"), ("role", "delete", "calico")):
            etcdctl(*arguments)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"ca_file": "/nonexistent/ca.pem"}, "ca_file"),
        ({"ca_file": __file__, "cert_file": __file__}, "key_file"),
        ({"ca_file": __file__, "key_file": __file__}, "cert_file"),
        ({"cert_file": __file__}, "key_file"),
    ],
)
def test_bad_tls_options_are_named(options: dict[str, str], name: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        Etcd3Datastore.open("etcd3://127.0.0.1", DatastoreOptions(**options))  # type: ignore[arg-type]
    assert refused.value.name == name


def test_a_slow_reader_loses_its_watch_not_the_stream() -> None:
    cancelled: list[Etcd3Watch] = []
    watch = Etcd3Watch("/calico/", cancelled.append, limit=3)
    batch = Batch(1, (Event("/calico/a", b"", None, 1), Event("/calico/b", b"", None, 1)))
    assert watch.deliver([batch])
    assert not watch.deliver([batch])
    assert isinstance(watch.next(0), Lost)
    assert watch.next(0) is None


def test_a_large_revision_arrives_whole(etcd: EtcdServer, open_store: Callable[..., Etcd3Datastore]) -> None:
    """Beyond gRPC's own limit of 4 MiB a message."""
    store = open_store(etcd.url, timeout_s=10.0)
    revision = store.list("/calico/").revision
    for number in range(6):
        store.put(f"/calico/big/{number}", b"x" * 1_000_000)
    assert len(store.list("/calico/big/").entries) == 6
    watch = store.watch("/calico/big/", revision)
    for _ in range(6):
        assert isinstance(watch.next(30), Batch)
    store.delete_prefix("/calico/big/")
    gone = watch.next(30)
    assert isinstance(gone, Batch)
    assert len(gone.events) == 6


def test_closing_leaves_no_thread(etcd: EtcdServer) -> None:
    before = threading.active_count()
    store = Etcd3Datastore.open(etcd.url, DatastoreOptions())
    store.transact([], [Put("/calico/a", b"")])
    store.watch("/calico/", 0)
    store.close()
    eventually(lambda: threading.active_count() <= before)

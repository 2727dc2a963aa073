from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from calico_core.dataplane.linux import netns
from calico_core.errors import InvalidRequest, KernelRefused, NamespaceGone
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root


def this_thread() -> int:
    return Path(netns.THIS_THREAD).stat().st_ino


def test_a_function_runs_in_the_namespace_and_the_caller_stays_where_it_was(container):
    before = this_thread()
    assert netns.run_in(container.fd, this_thread) == os.fstat(container.fd).st_ino
    assert this_thread() == before == Path(netns.OWN_NAMESPACE).stat().st_ino


def test_without_a_descriptor_the_function_runs_in_place():
    assert netns.run_in(None, threading.get_ident) == threading.get_ident()


def test_an_exception_comes_back_and_the_worker_goes_home(container):
    def fail() -> None:
        raise KeyError("x")

    for _ in range(20):
        with pytest.raises(KeyError):
            netns.run_in(container.fd, fail)
    own = netns.open_namespace(netns.OWN_NAMESPACE)
    try:
        assert netns.run_in(own, this_thread) == this_thread()
    finally:
        os.close(own)


def test_no_thread_stays_behind_to_keep_a_namespace_alive(container):
    """A thread that was joined may be there for a moment yet: the kernel ends it after Python did. So it is with the
    one that made the namespace."""

    def inhabitants() -> list[Path]:
        found: list[Path] = []
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if (task / "ns/net").stat().st_ino == os.fstat(container.fd).st_ino:
                    found.append(task)
        return found

    eventually(lambda: len(netns.run_in(container.fd, inhabitants)) == 1)
    eventually(lambda: inhabitants() == [])


def test_calls_nest(host, container):
    def inner() -> tuple[int, int]:
        return this_thread(), netns.run_in(container.fd, this_thread)

    outer, nested = netns.run_in(host.fd, inner)
    assert (outer, nested) == (os.fstat(host.fd).st_ino, os.fstat(container.fd).st_ino)


def test_many_threads_each_get_their_namespace(host, container):
    wrong: list[int] = []

    def enter(descriptor: int) -> None:
        for _ in range(50):
            if netns.run_in(descriptor, this_thread) != os.fstat(descriptor).st_ino:
                wrong.append(descriptor)

    threads = [threading.Thread(target=enter, args=(each.fd,)) for each in (host, container) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_socket_stays_in_its_namespace(host, container):
    with netns.socket_in(host.fd, socket.AF_UNIX, socket.SOCK_STREAM) as first:
        first.bind("\0calico-test-abstract")  # abstract names belong to the network namespace
        with netns.socket_in(container.fd, socket.AF_UNIX, socket.SOCK_STREAM) as second:
            second.bind("\0calico-test-abstract")
        with netns.socket_in(host.fd, socket.AF_UNIX, socket.SOCK_STREAM) as third, pytest.raises(OSError):
            third.bind("\0calico-test-abstract")


def test_a_function_that_takes_too_long_is_left_behind(container):
    release = threading.Event()
    with pytest.raises(KernelRefused, match="no result"):
        netns.run_in(container.fd, release.wait, timeout_s=0.05)
    release.set()
    assert netns.run_in(container.fd, this_thread) == os.fstat(container.fd).st_ino


def test_namespaces_are_compared_by_identity(host, container):
    again = netns.open_namespace(host.path)
    try:
        assert netns.same_namespace(host.fd, again)
        assert not netns.same_namespace(host.fd, container.fd)
        assert not netns.is_own_namespace(host.fd)
    finally:
        os.close(again)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/run/netns/not-there-at-all", "No such file"),
        ("/proc/self/status", "not a namespace"),
        ("/proc/self/ns/mnt", "another kind"),
        ("bad\0path", "null"),
    ],
)
def test_what_is_no_network_namespace_is_refused(path, reason):
    with pytest.raises(NamespaceGone, match=reason):
        netns.open_namespace(path)


def test_a_closed_descriptor_is_a_namespace_gone(container):
    stale = os.dup(container.fd)
    os.close(stale)
    with pytest.raises(NamespaceGone):
        netns.run_in(stale, this_thread)
    with pytest.raises(NamespaceGone):
        netns.same_namespace(stale, container.fd)


def test_create_refuses_a_taken_name_and_delete_is_idempotent(container):
    with pytest.raises(KernelRefused):
        netns.create_namespace(container.name)
    netns.delete_namespace(container.name)
    assert not Path(container.path).exists()
    netns.delete_namespace(container.name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(InvalidRequest):
        netns.create_namespace(name)

from __future__ import annotations

import platform
import threading

import pytest

from calico_core.dataplane.linux.link_messages import add_veth, delete_group, delete_link, set_link
from calico_core.dataplane.linux.orphans import DOOMED_GROUP
from calico_core.dataplane.linux.parting import Parting
from calico_core.dataplane.linux.reaper import LinkReaper
from calico_core.dataplane.linux.rtnetlink import RouteSocket, RouteSockets
from calico_core.errors import KernelRefused

pytestmark = pytest.mark.needs_root


def kernel() -> tuple[int, int]:
    major, minor, *_ = platform.release().split(".")
    return int(major), int(minor)


def make_pairs(host, count: int) -> list[str]:
    names = [f"cali{number}" for number in range(count)]
    host.route_socket.execute(*(add_veth(name, f"p{name}") for name in names))
    return names


def names_left(host) -> set[str]:
    return {link.name for link in host.route_socket.links()} - {"lo"}


def test_many_threads_delete_at_once(host):
    names = make_pairs(host, 30)
    host.route_socket.execute(add_veth("stays", "pstays"))
    sockets = RouteSockets(host.fd)
    reaper = LinkReaper(sockets)
    still_there: list[str] = []

    def delete(name: str) -> None:
        reaper.delete(name)
        with sockets.borrow() as mine:
            if mine.find_link(name) is not None:
                still_there.append(name)

    threads = [threading.Thread(target=delete, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert still_there == []
    assert names_left(host) == {"stays", "pstays"}
    reaper.close()
    sockets.close()


@pytest.mark.skipif(kernel() < (6, 2), reason="older kernels do not tell the sender of a deleted link")
def test_nobody_waits_for_the_kernels_memory(host):
    """The link is gone while the thread that asked for it is still kept by the kernel."""
    was_kept = []
    for name in make_pairs(host, 10):
        with RouteSocket(host.fd) as its_own:
            parting = Parting(its_own, delete_link(name))
            sender = threading.Thread(target=parting.send)
            sender.start()
            assert parting.wait() is None
            was_kept.append(sender.is_alive())
            assert host.route_socket.find_link(name) is None
            host.route_socket.execute(add_veth(name, f"p{name}"))
            sender.join()
            host.route_socket.execute(delete_link(name))
    assert any(was_kept)


def test_a_change_that_the_kernel_only_acknowledges(host):
    """As the deletion of a link before Linux 6.2: the wait lasts as long as the sending, and the socket serves on."""
    names = make_pairs(host, 2)
    host.route_socket.execute(*(set_link(name, group=DOOMED_GROUP) for name in names))
    with RouteSocket(host.fd) as its_own:
        parting = Parting(its_own, delete_group(DOOMED_GROUP))
        outcome = []
        sender = threading.Thread(target=lambda: outcome.append(parting.send()))
        sender.start()
        assert parting.wait() is None
        sender.join()
        assert outcome == [True]
        assert [link.name for link in its_own.links()] == ["lo"]


def test_an_error_reaches_the_caller_and_the_reaper_goes_on(host):
    sockets = RouteSockets(host.fd)
    reaper = LinkReaper(sockets)
    with pytest.raises(KernelRefused):
        reaper.delete("lo")
    make_pairs(host, 1)
    reaper.delete("cali0")
    assert names_left(host) == set()
    reaper.close()
    sockets.close()

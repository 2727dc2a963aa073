"""The line in the kernel's log (felix specification 6.4, scenario 21): that it is there, and what it says.

The kernel keeps what namespaces log to itself unless it is told otherwise, and then says it to all: lines are known by
a prefix of this process. Both drivers pass all of it.
"""

from __future__ import annotations

import errno
import os
import select
import time
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from calico_core.model.hoststate import HostRule, PolicyList
from tests.integration.dataplane_nftables.test_nftables_traffic import P, allow, inbound, only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.needs_root

_ALL_NAMESPACES = Path("/proc/sys/net/netfilter/nf_log_all_netns")
_NOTICE = 5
OWN, OTHER = f"own{os.getpid()}", f"other{os.getpid()}"


class KernelLog:
    """What the kernel says from now on. ``lines``: what it has said with the prefix of this process, as read so far."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.lseek(descriptor, 0, os.SEEK_END)
        self.lines: list[str] = []

    def await_line(self, *words: str, within_s: float = 30.0) -> str:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            found = next((line for line in self.lines if all(word in line for word in words)), None)
            if found is not None:
                return found
            self._read()
        raise AssertionError(f"no line has {words} among {self.lines}")

    def _read(self) -> None:
        select.select([self._descriptor], [], [], 0.2)
        while True:
            try:
                record = os.read(self._descriptor, 8192).decode(errors="replace")
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EPIPE:  # records that were overwritten before they were read
                    raise
                continue
            head, _, text = record.partition(";")
            if OWN in text or OTHER in text:
                assert int(head.split(",")[0]) & 7 == _NOTICE
                self.lines.append(text.splitlines()[0])


@pytest.fixture
def kernel_log() -> Iterator[KernelLog]:
    try:
        before = _ALL_NAMESPACES.read_text()
        _ALL_NAMESPACES.write_text("1")
    except OSError as error:
        pytest.skip(f"the kernel does not say what namespaces log: {error}")
    try:
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        _ALL_NAMESPACES.write_text(before)
        pytest.skip(f"the kernel's log cannot be read: {error}")
    try:
        yield KernelLog(descriptor)
    finally:
        os.close(descriptor)
        _ALL_NAMESPACES.write_text(before)


def test_rules_log_under_the_prefix_of_the_host_and_under_their_own(
    make_lab: Callable[..., Any], kernel_log: KernelLog
) -> None:
    lab = make_lab(log_prefix=OWN)
    a, b = lab.workload(), lab.workload()
    rules = (
        HostRule(action="log", protocol=6, dst_ports=((80, 81),)),
        HostRule(action="deny", protocol=6, dst_ports=((81, 81),), log_prefix=OTHER),
        allow(),
    )
    assert lab.start(a.endpoint(only(P)), b.endpoint(), **inbound(*rules)).is_clean
    for source, target in ((b.v4, a.v4), (b.v6, a.v6)):
        assert b.reaches(target, 82)
        assert b.is_blocked_from(target, 81)
        assert b.reaches(target, 80)
        ends = f"SRC={_as_logged(source)} DST={_as_logged(target)} "
        passed = kernel_log.await_line(f"{OWN}: ", ends, "PROTO=TCP", "DPT=80 ")
        assert f"OUT={a.interface} " in passed
        assert f"IN={b.interface} " in passed
        kernel_log.await_line(f"{OWN}: ", ends, "DPT=81 ")
        kernel_log.await_line(f"{OTHER}: ", ends, "DPT=81 ")
    assert not [line for line in kernel_log.lines if "DPT=82 " in line], "what no rule logs"
    assert not [line for line in kernel_log.lines if OTHER in line and "DPT=80 " in line]


def test_denials_are_logged_where_that_is_asked_for(make_lab: Callable[..., Any], kernel_log: KernelLog) -> None:
    lab = make_lab(log_prefix=OWN, drop_override="LOG-and-DROP")
    a, b = lab.workload(), lab.workload()
    assert lab.start(a.endpoint(PolicyList()), b.endpoint()).is_clean
    assert b.is_blocked_from(a.v4, 80)
    kernel_log.await_line(f"{OWN}: ", f"SRC={b.v4} DST={a.v4} ", "DPT=80 ")


def _as_logged(address: str) -> str:
    """The kernel writes IPv6 addresses in full."""
    return ip_address(address).exploded

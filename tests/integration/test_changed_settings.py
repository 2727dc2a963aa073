"""A running node and the datastore's configuration: it starts itself anew when it cannot follow."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calico_core.datastore.records import TypedRecords
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.errors import ToolFailed
from calico_core.interfaces.datastore import DatastoreOptions
from calico_core.lab.host import LabHost
from calico_core.lab.topology import Laboratory
from calico_core.model.keys import GlobalConfigKey
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root


@pytest.fixture
def host() -> Iterator[LabHost]:
    with Laboratory.create(f"s{uuid.uuid4().hex[:8]}", 1, datastore="sqlite", routing="none") as made:
        yield made.hosts[0]


def wait_until(holds: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def says(host: LabHost, text: str) -> bool:
    return text in host.node_log.read_text()


def test_a_setting_that_needs_a_start_gets_one_in_place_and_equal_values_do_not(host: LabHost) -> None:
    host.start_node()
    first = host.node_pid
    host.calicoctl("config", "set", "LogActionRateLimit", "0")
    host.calicoctl("config", "set", "LogSeverityScreen", "debug")
    eventually(lambda: says(host, "settings.followed"))
    assert host.node_pid == first
    host.calicoctl("config", "set", "LogActionRateLimit", "7")
    eventually(lambda: says(host, "socket.inherited name=node"))
    assert says(host, "settings.needs_start")
    assert says(host, "node.restart_wanted")
    assert host.node_pid == first
    shown = host.calicoctl("config", "show", "-o", "json").stdout
    assert '"datastore global LogActionRateLimit"' in shown


def test_a_change_that_is_taken_back_within_the_pause_costs_nothing(host: LabHost) -> None:
    """Written from here: two runs of calicoctl are longer than the pause on a busy machine, or come as one change."""
    host.start_node()
    first = host.node_pid
    changed = GlobalConfigKey("LogActionRateLimit")
    with contextlib.closing(SqliteDatastore.open(host.environment["CALICO_DATASTORE"], DatastoreOptions())) as store:
        records = TypedRecords(store)
        records.put(changed, "7")
        eventually(lambda: says(host, "settings.needs_start"))
        assert records.delete(changed)
    host.calicoctl("config", "set", "LogSeverityScreen", "debug")
    eventually(lambda: says(host, "settings.followed"))
    assert not wait_until(lambda: says(host, "node.restart_wanted"), 3)
    assert host.node_pid == first


def test_a_signal_asks_for_statistics(host: LabHost) -> None:
    host.start_node()
    assert host.node_pid is not None
    os.kill(host.node_pid, signal.SIGUSR1)
    eventually(lambda: says(host, "node.figure metric=felix_resync_state value=3"))
    eventually(lambda: says(host, "node.thread thread=engine"))


def test_a_running_node_writes_its_log_where_the_datastore_says_and_opens_it_again(
    host: LabHost, tmp_path: Path
) -> None:
    file, old = tmp_path / "felix.log", tmp_path / "felix.log.1"
    host.start_node()
    first = host.node_pid
    assert first is not None
    host.calicoctl("config", "set", "LogFilePath", str(file))
    host.calicoctl("config", "set", "LogSeverityFile", "debug")
    eventually(file.exists)
    host.calicoctl("config", "set", "LogSeverityScreen", "warning")
    eventually(lambda: "settings.followed setting=log_level" in file.read_text())
    file.rename(old)
    os.kill(first, signal.SIGHUP)
    host.calicoctl("config", "set", "LogSeverityScreen", "error")
    eventually(lambda: file.exists() and "now=error" in file.read_text())
    assert host.node_pid == first
    host.calicoctl("config", "set", "LogFilePath", f"{file}/x.log")
    eventually(lambda: says(host, "cannot be written: Not a directory"))
    assert host.node_pid == first


def test_a_loose_filter_ends_the_start_unless_it_is_wanted(host: LabHost) -> None:
    host.run(["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=2", "net.ipv4.conf.default.rp_filter=0"])
    with pytest.raises(ToolFailed, match=r"net\.ipv4\.conf\.all\.rp_filter is 2.*IgnoreLooseRPF"):
        host.start_node()
    host.calicoctl("config", "set", "IgnoreLooseRPF", "true")
    host.start_node()
    assert says(host, "kernel.loose_rpf")
    host.stop_node()
    host.calicoctl("config", "remove", "IgnoreLooseRPF")
    host.run(["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0"])
    host.start_node()
    assert host.run(["sysctl", "-n", "net.ipv4.conf.default.rp_filter"]).stdout.strip() == "1"


def test_a_stored_word_that_it_is_no_router_holds_from_the_first_moment(host: LabHost) -> None:
    forwarding = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]
    host.start_node()
    host.calicoctl("config", "set", "IPForwarding", "Disabled")
    host.stop_node()
    for value in ("0", "1"):
        host.run(["sysctl", "-qw", *(f"{name}={value}" for name in forwarding)])
        host.start_node()
        assert host.run(["sysctl", "-n", *forwarding]).stdout.split() == [value, value]
        host.stop_node()


@pytest.mark.parametrize("driver", ["nftables", "iptables"])
def test_the_host_endpoint_of_all_interfaces_leaves_excluded_ones_out(host: LabHost, driver: str) -> None:
    def dispatched() -> str:
        argv = {"nftables": "nft list chain inet calico host_in", "iptables": "iptables -S calico-hfrom"}[driver]
        return host.run(argv.split(), check=False).stdout

    def link(*names: str) -> None:
        host.run(["ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1]])

    link("zz0", "yy0")
    host.start_node(environment={"FELIX_INTERFACEEXCLUDE": "kube-ipvs0,/^zz/", "CALICO_DATAPLANE_DRIVER": driver})
    host.calicoctl("host-endpoint", "add", "all", "--interface", "*")
    eventually(lambda: "zz0" in dispatched())
    assert "yy0" not in dispatched()
    link("zz1", "zz2")
    eventually(lambda: "zz1" in dispatched() and "zz2" in dispatched())
    host.run(["ip", "link", "del", "zz1"])
    eventually(lambda: "zz1" not in dispatched() and "zz2" not in dispatched())
    assert "zz0" in dispatched()

"""GC removes exactly what is stale, STATUS says why not; a datastore that is away does not keep a container."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calico_core.lab.host import LabHost
from tests.e2e.cni.containers import Container, a_network, assert_settles, containers, records, whole_state
from tests.e2e.observing import MakeLab

pytestmark = pytest.mark.needs_root


def attachments(*made: Container) -> list[dict[str, str]]:
    return [{"containerID": each.id, "ifname": "eth0"} for each in made]


def collect(container: Container, valid: list[dict[str, str]], **changes: Any) -> Any:
    return container.call("GC", a_network(**{"cniVersion": "1.1.0", "cni.dev/valid-attachments": valid, **changes}))


def age(host: LabHost, container: Container) -> None:
    """Let the endpoint of a container look two minutes old."""
    key, value = next((key, value) for key, value in records(host).items() if f"/{container.id}/endpoint/" in key)
    record = json.loads(value) | {"created": time.time() - 120}
    on_store(host, "store.put(sys.argv[2], sys.argv[3].encode())", key, json.dumps(record))


def forget(host: LabHost, container: Container) -> None:
    """Delete its record as a person would: nobody else is told."""
    key = next(key for key in records(host) if f"/{container.id}/endpoint/" in key)
    on_store(host, "store.delete(sys.argv[2])", key)


def address_of(host: LabHost, container: Container) -> str:
    record = next(value for key, value in records(host).items() if f"/{container.id}/endpoint/" in key)
    return str(json.loads(record)["ipv4_nets"][0]).partition("/")[0]


def on_store(host: LabHost, what: str, *arguments: str) -> None:
    script = (
        "import sys; from calico_core.interfaces.datastore import DatastoreOptions\n"
        "from calico_core.plugin_host.loader import load_driver\n"
        "store = load_driver('calico.datastores', sys.argv[1].partition('://')[0])"
        f".open(sys.argv[1], DatastoreOptions())\n{what}; store.close()"
    )
    host.run([sys.executable, "-c", script, host.environment["CALICO_DATASTORE"], *arguments])


def test_exactly_what_is_stale(make_lab: MakeLab) -> None:
    host: LabHost = make_lab(1).hosts[0]
    empty = whole_state(host)
    with containers(host, 4) as (valid, stale, young, other):
        for each in (valid, stale, young):
            each.call("ADD")
        other.call("ADD", a_network(name="net2"))
        for each in (valid, stale, other):
            age(host, each)
        before = records(host)
        assert collect(valid, attachments(valid)) is None
        after = records(host)
        gone = {key for key in before if key not in after}
        assert len(gone) == 2, gone
        assert all(stale.id in key for key in gone)
        assert "eth0" not in stale.ip("-o", "link")
        assert collect(valid, attachments(valid)) is None
        assert records(host) == after
        for each in (valid, stale, young):
            each.call("DEL")
        other.call("DEL", a_network(name="net2"))
        assert_settles(host, empty)


def test_interfaces_that_nobody_has_a_record_of(make_lab: MakeLab) -> None:
    host: LabHost = make_lab(1).hosts[0]
    empty = whole_state(host)
    with containers(host, 3) as (forgotten, running, recorded):
        for each in (forgotten, running, recorded):
            each.call("ADD")
        with subprocess.Popen(
            ["nsenter", f"--net={running.namespace}", "sh", "-c", "echo; read x"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"  # it is inside
            for each in (forgotten, running):
                forget(host, each)
            valid = attachments(running, recorded)
            assert collect(recorded, valid) is None
            assert ["eth0" in each.ip("-o", "link") for each in (forgotten, running, recorded)] == [False, True, True]
            process.communicate(b"")
        assert collect(recorded, valid) is None
        assert ["eth0" in each.ip("-o", "link") for each in (forgotten, running, recorded)] == [False, False, True]
        assert "1 received" in host.run(["ping", "-c1", "-W10", address_of(host, recorded)]).stdout
        for each in (forgotten, running, recorded):
            each.call("DEL")
        assert_settles(host, empty)


def test_without_a_list_nothing_is_stale(shared_host: LabHost, shared_container: Container) -> None:
    shared_container.call("ADD")
    age(shared_host, shared_container)
    before = records(shared_host)
    for valid in (None, "all", [{"id": "x"}]):
        changes = {"cniVersion": "1.1.0", **({"cni.dev/valid-attachments": valid} if valid else {})}
        assert shared_container.refused("GC", a_network(**changes))["code"] == 7
    assert records(shared_host) == before
    shared_container.call("DEL")


def test_status_says_why_not(make_lab: MakeLab) -> None:
    host: LabHost = make_lab(1).hosts[0]
    configuration = a_network(cniVersion="1.1.0")
    with containers(host, 1) as (container,):
        assert container.call("STATUS", configuration) is None
        pools = {"type": "calico-ipam", "ipv4_pools": ["10.66.0.0/16"]}
        error = container.refused("STATUS", {**configuration, "ipam": pools})
        assert (error["code"], "no IPv4 pool" in error["msg"]) == (50, True)
        host.calicoctl("pool", "add", "10.66.0.0/29", "--block-size", "29")
        tiny = a_network(ipam={"type": "calico-ipam", "ipv4_pools": ["10.66.0.0/29"]})
        assert container.call("STATUS", {**tiny, "cniVersion": "1.1.0"}) is None
        for number in range(8):
            container.call("ADD", tiny, program="calico-ipam", container_id=f"c{number}")
        error = container.refused("STATUS", {**tiny, "cniVersion": "1.1.0"})
        assert (error["code"], "left" in error["msg"]) == (50, True)
        host.kill_node()
        assert container.refused("STATUS", configuration)["code"] == 50


@pytest.mark.parametrize("is_node_up", [True, False])
def test_a_datastore_that_is_away_keeps_no_container(
    make_lab: MakeLab, stop_etcd: Callable[[Any], Callable[[], None]], is_node_up: bool
) -> None:
    lab = make_lab(1, datastore="etcd")
    host: LabHost = lab.hosts[0]
    empty = whole_state(host)
    folder = Path(host.directory, "state", "cni", "deferred")
    with containers(host, 2) as (gone, back):
        gone.call("ADD")
        back.call("ADD")
        resume = stop_etcd(lab)
        if not is_node_up:
            host.kill_node()
        for each in (gone, back):
            assert each.call("DEL") is None
            assert "eth0" not in each.ip("-o", "link")
        assert len(list(folder.glob("*.json"))) == 2
        resume()
        result = back.call("ADD")  # wanted again before anything could be done
        if not is_node_up:
            host.start_node()
        deadline = time.monotonic() + 30
        while list(folder.glob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert list(folder.glob("*.json")) == []
        assert back.call("CHECK", a_network(prevResult=result)) is None
        assert len(records(host)["in use"]) == 1
        back.call("DEL")
        assert_settles(host, empty)


@pytest.mark.parametrize("is_node_up", [True, False])
def test_a_datastore_that_is_not_ready_is_not_written_to(make_lab: MakeLab, is_node_up: bool) -> None:
    """As while it is moved. The interface goes, the rest is done when it is ready again."""
    host: LabHost = make_lab(1).hosts[0]
    empty = whole_state(host)
    with containers(host, 3) as (first, second, third):
        first.call("ADD")
        second.call("ADD", program="calico-ipam")
        before = records(host)
        if not is_node_up:
            host.kill_node()
        on_store(host, "store.put('/calico/v1/Ready', b'false')")
        deadline = time.monotonic() + 30
        while (error := third.refused("ADD"))["code"] != 11 or "Ready" not in error["msg"]:  # a node hears of it soon
            assert time.monotonic() < deadline
        assert third.refused("ADD", program="calico-ipam")["code"] == 11
        name = host.run(["ip", "-o", "link", "show", "type", "veth"]).stdout
        assert "cali" in name
        first.call("DEL")
        second.call("DEL", program="calico-ipam")
        assert "cali" not in host.run(["ip", "-o", "link", "show", "type", "veth"]).stdout
        assert records(host) == before
        on_store(host, "store.put('/calico/v1/Ready', b'true')")
        host.start_node()
        assert_settles(host, empty, within_s=30)

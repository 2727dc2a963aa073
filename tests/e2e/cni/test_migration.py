"""``calico-ipam -upgrade``: containers whose addresses ``host-local`` gave go on as ours."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from calico_cni.host_local import HostLocalLeases
from calico_core.lab.host import LabHost
from calico_core.lab.topology import Laboratory
from tests.e2e.cni.containers import REFERENCE, Container, a_network, assert_settles, containers, whole_state
from tests.e2e.observing import MakeLab

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(not (REFERENCE / "host-local").exists(), reason="the reference CNI plugins are not installed"),
]

SUBNET = "192.168.77.0/24"  # of the default pool, as the range of a node's pods is
SIX = "fd80:24e2:f998:72d6::7000/116"
WAIT_S = 60.0


def host_local(leases: Path, subnet: str = SUBNET, **changes: Any) -> dict[str, Any]:
    return a_network(ipam={"type": "host-local", "subnet": subnet, "dataDir": str(leases)}, **changes)


def start(host: LabHost, directory: Path, **environment: str) -> subprocess.Popen[bytes]:
    argv = ["nsenter", f"--net={host.namespace}", "--", str(host.cni_bin_directory / "calico-ipam"), "-upgrade"]
    return subprocess.Popen(
        argv,
        env={
            **host.environment,
            "KUBERNETES_NODE_NAME": host.name,
            "CALICO_HOST_LOCAL_DIRECTORY": str(directory),
            **environment,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def upgrade(host: LabHost, directory: Path, **environment: str) -> str:
    process = start(host, directory, **environment)
    stdout, _ = process.communicate(timeout=100)
    assert process.returncode == 0, stdout
    return stdout.decode()


def refused(host: LabHost, directory: Path, **environment: str) -> Any:
    process = start(host, directory, **environment)
    stdout, _ = process.communicate(timeout=100)
    assert process.returncode == 1, stdout
    return json.loads(stdout)


def holder(host: LabHost, address: str) -> dict[str, Any]:
    """Handle and attributes; empty: free."""
    return dict(json.loads(host.calicoctl("ipam", "show", address, "-o", "json").stdout))


def address_of(result: dict[str, Any]) -> str:
    return str(result["ips"][0]["address"]).partition("/")[0]


def lease(host: LabHost, directory: Path, container_id: str, *ranges: str, interface: str = "eth0") -> list[str]:
    """Addresses that the real plugin gives, as another network plugin would ask for them."""
    ipam = {"type": "host-local", "dataDir": str(directory), "ranges": [[{"subnet": each}] for each in ranges]}
    variables = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": container_id,
        "CNI_NETNS": "/run/netns/none",
        "CNI_IFNAME": interface,
        "CNI_PATH": str(REFERENCE),
    }
    text = json.dumps({"cniVersion": "1.0.0", "name": "net1", "type": "bridge", "ipam": ipam})
    done = host.run([str(REFERENCE / "host-local")], environment=variables, stdin=text)
    return [each["address"].partition("/")[0] for each in json.loads(done.stdout)["ips"]]


@pytest.mark.parametrize(("datastore", "is_node_up"), [("sqlite", True), ("etcd", True), ("etcd", False)])
def test_containers_go_on_with_their_addresses(
    make_lab: MakeLab, tmp_path: Path, datastore: str, is_node_up: bool
) -> None:
    host: LabHost = make_lab(1, datastore=datastore).hosts[0]
    before = whole_state(host)
    with containers(host, 2) as (first, second):
        results = {each: each.call("ADD", host_local(tmp_path)) for each in (first, second)}
        addresses = {each: address_of(result) for each, result in results.items()}
        if not is_node_up:
            host.kill_node()
        assert upgrade(host, tmp_path / "net1") == "2 addresses of network net1 moved to calico-ipam\n"
        assert not (tmp_path / "net1").exists()
        assert upgrade(host, tmp_path / "net1") == f"{tmp_path}/net1 does not exist: nothing is to be moved\n"
        for each, address in addresses.items():
            found = holder(host, address)
            assert (found["handle"], found["host"]) == (f"net1.{each.id}", host.name)
            assert found["attributes"]["orchestrator"] == "cni"
            assert found["attributes"]["interface"] == results[each]["interfaces"][0]["name"]
        host.start_node()
        for each, result in results.items():
            assert each.call("CHECK", a_network(prevResult=result)) is None
            assert each.call("ADD", a_network())["ips"] == result["ips"]
            # host-local would begin anew with the same addresses
            assert "calico-ipam -upgrade" in each.refused("ADD", host_local(tmp_path))["msg"]
        for each in (first, second):
            each.call("DEL", a_network(), environment={"CNI_NETNS": ""})
            assert not holder(host, addresses[each])["is_assigned"]
        assert_settles(host, before)


def left_by_a_kill(host: LabHost, directory: Path, leased: dict[str, str]) -> list[str]:
    """Whose leases are there still, when the move was killed after its first."""
    with start(host, directory) as process:
        try:
            while process.poll() is None and all((directory / address).exists() for address in leased.values()):
                pass
        finally:
            process.kill()
            process.communicate()
    return [name for name, address in leased.items() if (directory / address).exists()]


def test_killed_in_the_middle(shared_host: LabHost, shared_container: Container, tmp_path: Path) -> None:
    """Nothing is assigned until it was repeated; a container that goes meanwhile does not keep its address."""
    host = shared_host
    before = whole_state(host)
    directory = tmp_path / "net1"
    for _ in range(5):  # a kill that comes too late shows nothing
        leased = {f"c{number}": lease(host, tmp_path, f"c{number}", SUBNET)[0] for number in range(60)}
        left = left_by_a_kill(host, directory, leased)
        if left:
            break
        for name in leased:
            shared_container.call("DEL", program="calico-ipam", container_id=name)
    assert left
    for program in ("calico", "calico-ipam"):
        error = shared_container.refused("ADD", program=program)
        assert (error["code"], "run calico-ipam -upgrade again" in error["msg"]) == (11, True)
    gone = left[-1]
    shared_container.call("DEL", program="calico-ipam", container_id=gone)
    assert upgrade(host, directory).startswith(f"{len(left)} addresses of network net1 moved to calico-ipam\n")
    assert not directory.exists()
    for name, address in leased.items():
        if name != gone:
            assert holder(host, address)["handle"] == f"net1.{name}"
    deadline = time.monotonic() + WAIT_S
    while holder(host, leased[gone])["is_assigned"]:  # the node makes up for it
        assert time.monotonic() < deadline
    address = shared_container.call("ADD", program="calico-ipam")["ips"][0]["address"].partition("/")[0]
    assert address not in leased.values() or address == leased[gone]
    for container_id in (*leased, shared_container.id):
        shared_container.call("DEL", program="calico-ipam", container_id=container_id)
    assert_settles(host, before)


def test_what_cannot_be_moved_stays(shared_host: LabHost, shared_container: Container, tmp_path: Path) -> None:
    """An address that another handle has, one outside of every pool, and a file of somebody else."""
    host = shared_host
    before = whole_state(host)
    taken, free = lease(host, tmp_path, "a", SUBNET)[0], lease(host, tmp_path, "b", SUBNET, SIX)
    outside = lease(host, tmp_path, "c", "172.31.7.0/24")[0]
    directory = tmp_path / "net1"
    (directory / "notes").write_text("mine")
    another = {"CNI_ARGS": f"IP={taken}"}
    shared_container.call("ADD", program="calico-ipam", container_id="other", environment=another)
    error = refused(host, directory)
    assert error["msg"].startswith(f"2 addresses moved to calico-ipam, 3 stay in {directory}: ")
    for what in (f"{taken} of container a", "net1.other", f"{outside} of container c", "notes"):
        assert what in error["msg"]
    assert sorted(path.name for path in directory.iterdir() if path.name[0] in "1n") == [outside, taken, "notes"]
    assert [holder(host, each)["handle"] for each in (taken, *free)] == ["net1.other", "net1.b", "net1.b"]
    # what is left can do no harm, so attaches go on
    shared_container.call("ADD", program="calico-ipam")
    shared_container.call("DEL", program="calico-ipam", container_id="other")
    (directory / "notes").unlink()
    host.calicoctl("pool", "add", "172.31.0.0/16")
    said = upgrade(host, directory)
    assert said.startswith("2 addresses of network net1 moved to calico-ipam\n")
    assert "calicoctl ipam release" in said  # no endpoint carries what a bridge's containers have
    assert holder(host, taken)["handle"] == "net1.a"
    for container_id in ("a", "b", "c", shared_container.id):
        shared_container.call("DEL", program="calico-ipam", container_id=container_id)
    host.calicoctl("pool", "remove", "172.31.0.0/16")
    assert_settles(host, before)


def test_by_calicoctl(shared_host: LabHost, tmp_path: Path) -> None:
    """Where the executables are not."""
    address = lease(shared_host, tmp_path, "a", SUBNET)[0]
    lease(shared_host, tmp_path, "b", "172.31.7.0/24")
    run_directory = str(Path(shared_host.environment["CALICO_RUN_DIRECTORY"]))
    options = ("--directory", str(tmp_path / "net1"), "--run-directory", run_directory)
    done = shared_host.calicoctl("cni", "upgrade-ipam", *options, check=False)
    assert (done.returncode, "'--node'" in done.stderr) == (2, True)
    done = shared_host.calicoctl("cni", "upgrade-ipam", *options, "--node", shared_host.name, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: 1 address moved to calico-ipam, 1 stay in {tmp_path}/net1: 172.31.7.2 of ")
    assert "calicoctl pool add" in done.stderr
    (tmp_path / "net1" / "172.31.7.2").unlink()
    done = shared_host.calicoctl("cni", "upgrade-ipam", *options, "--node", shared_host.name)
    assert done.stdout == "0 addresses of network net1 moved to calico-ipam\n"
    assert holder(shared_host, address)["handle"] == "net1.a"
    shared_host.calicoctl("ipam", "release", address)


def test_the_plugin_waits_for_the_move(shared_host: LabHost, tmp_path: Path) -> None:
    """Both take the same lock."""
    lease(shared_host, tmp_path, "a", SUBNET)
    leases = HostLocalLeases(tmp_path / "net1")
    inode = (leases.directory / "lock").stat().st_ino
    with ThreadPoolExecutor(1) as threads, leases.locked(timeout_s=WAIT_S):
        later = threads.submit(lease, shared_host, tmp_path, "b", SUBNET)
        deadline = time.monotonic() + WAIT_S
        while not any("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines()):
            assert time.monotonic() < deadline
            assert not later.done()
        assert len(leases.read()[0]) == 1
    assert later.result(WAIT_S)
    assert len(leases.read()[0]) == 2


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"KUBERNETES_NODE_NAME": ""}, "KUBERNETES_NODE_NAME: is not set"),
        ({"KUBERNETES_NODE_NAME": "elsewhere"}, "KUBERNETES_NODE_NAME: 'elsewhere' is not the node here"),
        ({"CALICO_HOST_LOCAL_DIRECTORY": "net1"}, "CALICO_HOST_LOCAL_DIRECTORY: net1 is not the absolute path"),
        ({"KUBECONFIG": "/does/not/exist"}, "/does/not/exist: No such file"),
    ],
)
def test_what_is_missing_is_named(shared_host: LabHost, tmp_path: Path, environment: dict[str, str], says: str) -> None:
    address = lease(shared_host, tmp_path, "a", SUBNET)[0]
    assert says in refused(shared_host, tmp_path / "net1", **environment)["msg"]
    assert (tmp_path / "net1" / address).exists()
    assert not holder(shared_host, address)["is_assigned"]


def test_a_datastore_that_is_away(
    make_lab: MakeLab, stop_etcd: Callable[[Laboratory], Callable[[], None]], tmp_path: Path
) -> None:
    """It waits, and goes on."""
    lab = make_lab(1, datastore="etcd")
    host: LabHost = lab.hosts[0]
    address = lease(host, tmp_path, "a", SUBNET)[0]
    resume = stop_etcd(lab)
    with start(host, tmp_path / "net1") as process:
        try:
            assert process.stderr is not None
            assert b"migration.waits" in process.stderr.readline()
            assert (tmp_path / "net1" / address).exists()
            resume()
            assert process.wait(WAIT_S * 3) == 0
        finally:
            process.kill()
    assert holder(host, address)["handle"] == "net1.a"

"""What ``calico-ipam -upgrade`` reads, whom it holds up, and the node's tunnel addresses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from calico_cni.host_local import HostLocalLeases
from calico_cni.migrations import Migrations
from calico_core.errors import InvalidRequest, NotReady
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import ReadyKey, WorkloadEndpointKey
from tests.doubles.cni import HOST, CniSetup, a_network, error_of
from tests.doubles.kubernetes_api import KubernetesApi

HOST_LOCAL = a_network(ipam={"type": "host-local"})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """As plugins of several versions leave one."""
    found = tmp_path / "networks" / "net1"
    found.mkdir(parents=True)
    (found / "lock").write_bytes(b"")
    (found / "last_reserved_ip.0").write_text("10.65.0.7")
    (found / "10.65.0.7").write_bytes(b"c1\r\neth0")
    (found / "10.65.0.5").write_bytes(b"c2\r\nnet1")
    (found / "10.65.0.4").write_bytes(b"old\n")
    (found / "fd80:65::5").write_bytes(b"c2\r\nnet1")
    return found


@pytest.fixture
def setup(tmp_path: Path) -> CniSetup:
    made = CniSetup(-1, is_resident=False, state=tmp_path / "state")
    made.records.put(ReadyKey(), "true")
    return made


def upgrade(setup: CniSetup, directory: Path, program: str = "calico-ipam", **environment: str) -> Any:
    named = {"KUBERNETES_NODE_NAME": HOST, "CALICO_HOST_LOCAL_DIRECTORY": str(directory)}
    return setup.call("UPGRADE", b"", program=program, namespace_fd=None, **(named | environment))


def test_leases_of_every_form(directory: Path) -> None:
    leases, strangers = HostLocalLeases(directory).read()
    assert [(str(each.address), each.container_id, each.interface) for each in leases] == [
        ("10.65.0.4", "old", "eth0"),
        ("10.65.0.5", "c2", "net1"),
        ("10.65.0.7", "c1", "eth0"),
        ("fd80:65::5", "c2", "net1"),
    ]
    assert strangers == ()


@pytest.mark.parametrize(
    ("name", "content"),
    [("notes", b"c1"), ("10.65.0.9", b""), ("10.65.0.9", b"a b"), ("10.65", b"c1"), ("10.65.0.9", b"\xff")],
)
def test_what_is_no_lease(directory: Path, name: str, content: bytes) -> None:
    (directory / name).write_bytes(content)
    leases, strangers = HostLocalLeases(directory).read()
    assert (len(leases), strangers) == (4, (name,))


def test_a_lock_that_nobody_gives_back(directory: Path) -> None:
    leases = HostLocalLeases(directory)
    with leases.locked(timeout_s=1), pytest.raises(NotReady, match="lock"), leases.locked(timeout_s=0.1):
        raise AssertionError
    with leases.locked(timeout_s=1):
        pass


# --- attaches --------------------------------------------------------------------------------------------------


def test_a_move_waits_for_attaches_that_run(tmp_path: Path) -> None:
    """And no attach begins that did not see it."""
    migrations, others = Migrations(tmp_path), Migrations(tmp_path)
    has_begun = threading.Event()

    def move() -> None:
        with others.moving("net1", Path("/leases/net1"), timeout_s=30):
            has_begun.set()

    moving = threading.Thread(target=move)
    with migrations.admitted("net2", "calico-ipam"):
        moving.start()
        while not migrations.is_under_way:
            assert moving.is_alive()
        with pytest.raises(NotReady, match="of network net1 are being moved"), migrations.admitted("net2", "x"):
            raise AssertionError
        assert not has_begun.is_set()
    moving.join(30)
    assert has_begun.is_set()
    assert migrations.is_under_way
    migrations.end("net1", is_whole=False)
    with migrations.admitted("net1", "host-local"):
        assert not migrations.is_under_way


def test_an_attach_that_does_not_end(tmp_path: Path) -> None:
    migrations = Migrations(tmp_path)
    with migrations.admitted("net2", "calico-ipam"), pytest.raises(NotReady, match="has not ended"):  # noqa: SIM117
        with Migrations(tmp_path).moving("net1", Path("/leases/net1"), timeout_s=0.1):
            raise AssertionError


def test_host_local_afterwards(tmp_path: Path) -> None:
    migrations = Migrations(tmp_path)
    with migrations.moving("net1", Path("/leases/net1"), timeout_s=1):
        migrations.end("net1", is_whole=True)
    for network, ipam in (("net1", "calico-ipam"), ("net2", "host-local")):
        with migrations.admitted(network, ipam):
            pass
    with pytest.raises(InvalidRequest, match="twice"), migrations.admitted("net1", "host-local"):
        raise AssertionError


def test_a_file_that_nobody_can_read(setup: CniSetup, namespace_fd: int, tmp_path: Path) -> None:
    """Nothing is assigned, and a DEL is done and repeated later."""
    path = tmp_path / "state" / "cni" / "migrations.json"
    path.write_text("{")
    for program in ("calico", "calico-ipam"):
        error = error_of(setup.call("ADD", program=program, namespace_fd=namespace_fd))
        assert (error["code"], str(path) in error["msg"]) == (11, True)
        assert setup.call("DEL", program=program).status == 0
    assert setup.integration.replay() == 0
    path.unlink()
    assert setup.integration.replay() == 2


def test_a_state_directory_that_cannot_be_written() -> None:
    with Migrations(Path("/dev/null/state")).admitted("net1", "calico-ipam"):
        pass


def test_a_detach_meanwhile_is_repeated_afterwards(setup: CniSetup, directory: Path, tmp_path: Path) -> None:
    migrations = Migrations(tmp_path / "state" / "cni")
    with migrations.moving("net1", directory, timeout_s=1):
        for program in ("calico", "calico-ipam"):
            assert setup.call("DEL", program=program, container="c1").status == 0
        assert error_of(setup.call("ADD", program="calico-ipam"))["code"] == 11
        assert setup.integration.replay() == 0
    upgrade(setup, directory)
    assert setup.ipam.by_handle("net1.c1")
    assert setup.integration.replay() == 2
    assert setup.ipam.by_handle("net1.c1") == ()
    assert setup.ipam.by_handle("net1.c2.net1")


# --- the move --------------------------------------------------------------------------------------------------


def test_addresses_of_one_interface_have_one_handle(setup: CniSetup, directory: Path) -> None:
    reply = upgrade(setup, directory)
    assert (reply.status, reply.stdout.partition(b"\n")[0]) == (0, b"4 addresses of network net1 moved to calico-ipam")
    assert {str(address): handle for address, (handle, _) in setup.ipam.held.items()} == {
        "10.65.0.4": "net1.old",
        "10.65.0.5": "net1.c2.net1",
        "10.65.0.7": "net1.c1",
        "fd80:65::5": "net1.c2.net1",
    }
    assert len(setup.ipam.requests) == 3
    assert not directory.exists()


def test_what_endpoints_say(setup: CniSetup, directory: Path) -> None:
    """A pod's address can be found leaked later; one that another container's endpoint carries is not taken."""
    pod = WorkloadEndpointKey(HOST, "k8s", "ns1.web.0", "e1")
    setup.records.put(pod, an_endpoint("cali1", "10.65.0.7/32", "c1"))
    setup.records.put(WorkloadEndpointKey(HOST, "cni", "c9", "e2"), an_endpoint("cali2", "10.65.0.4/32", "c9"))
    error = error_of(upgrade(setup, directory))
    assert "10.65.0.4 of container old: the endpoint of container c9 carries it" in error["msg"]
    _, attributes = setup.ipam.held[IPAddress("10.65.0.7")]
    assert attributes.pop("timestamp")
    assert attributes == {
        "node": HOST,
        "network": "net1",
        "container": "c1",
        "ifname": "eth0",
        "orchestrator": "k8s",
        "interface": "cali1",
        "namespace": "ns1",
        "pod": "web.0",
    }
    assert "orchestrator" not in setup.ipam.held[IPAddress("10.65.0.5")][1]
    assert [str(each.address) for each in HostLocalLeases(directory).read()[0]] == ["10.65.0.4"]


def an_endpoint(interface: str, network: str, container_id: str) -> WorkloadEndpoint:
    nets = (IPNetwork(network),)
    return WorkloadEndpoint(state="active", name=interface, ipv4_nets=nets, container_id=container_id)


def test_only_the_process_that_is_run_for_it(directory: Path, tmp_path: Path) -> None:
    """The node sees neither the caller's files nor its environment."""
    assert "-upgrade" in error_of(upgrade(CniSetup(-1, state=tmp_path / "state"), directory))["msg"]


def test_only_the_plugin_of_addresses(setup: CniSetup, directory: Path) -> None:
    assert "run calico-ipam -upgrade" in error_of(upgrade(setup, directory, program="calico"))["msg"]


# --- the node's tunnels ----------------------------------------------------------------------------------------


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesApi]:
    made = KubernetesApi(tmp_path)
    yield made
    made.stop()


def annotated(**addresses: str) -> dict[str, str]:
    return {f"projectcalico.org/{name}": address for name, address in addresses.items()}


def test_tunnel_addresses_are_kept(setup: CniSetup, directory: Path, api: KubernetesApi) -> None:
    kept = annotated(IPv4IPIPTunnelAddr="10.65.0.1", IPv4VXLANTunnelAddr="10.65.0.2", IPv6VXLANTunnelAddr="fd80:65::2")
    api.put("nodes", HOST, annotations=kept)
    reply = upgrade(setup, directory, KUBECONFIG=api.kubeconfig())
    assert (reply.status, b"takes another" in reply.stdout) == (0, False)
    held = {str(address): found for address, found in setup.ipam.held.items()}
    assert held["10.65.0.1"] == (f"ipip-tunnel-addr-{HOST}", {"node": HOST, "type": "ipipTunnelAddress"})
    assert held["10.65.0.2"] == (f"vxlan-tunnel-addr-{HOST}", {"node": HOST, "type": "vxlanTunnelAddress"})
    assert held["fd80:65::2"] == (f"vxlan-v6-tunnel-addr-{HOST}", {"node": HOST, "type": "vxlanTunnelAddress"})


@pytest.mark.parametrize("address", ["10.99.0.1", "10.65.0.1", "10.65"])
def test_a_tunnel_address_that_cannot_be_kept(
    setup: CniSetup, directory: Path, api: KubernetesApi, address: str
) -> None:
    """The node has to take another: containers go on."""
    setup.ipam.held[IPAddress("10.65.0.1")] = ("other", {})
    api.put("nodes", HOST, annotations=annotated(IPv4VXLANTunnelAddr=address))
    reply = upgrade(setup, directory, KUBECONFIG=api.kubeconfig())
    assert (reply.status, f"\n{address} of vxlan.calico: ".encode() in reply.stdout) == (0, True)
    assert not directory.exists()


def test_the_nodes_own_tunnel_address_stays(setup: CniSetup, directory: Path, api: KubernetesApi) -> None:
    setup.ipam.held[IPAddress("10.65.0.9")] = (f"vxlan-tunnel-addr-{HOST}", {})
    api.put("nodes", HOST, annotations=annotated(IPv4VXLANTunnelAddr="10.65.0.2"))
    assert upgrade(setup, directory, KUBECONFIG=api.kubeconfig()).status == 0
    assert IPAddress("10.65.0.2") not in setup.ipam.held


def test_a_node_that_the_api_does_not_know(setup: CniSetup, directory: Path, api: KubernetesApi) -> None:
    """Nothing is moved, and nobody held up."""
    error = error_of(upgrade(setup, directory, KUBECONFIG=api.kubeconfig()))
    assert (error["code"], f"/api/v1/nodes/{HOST}: status 404" in error["msg"]) == (103, True)
    assert HostLocalLeases(directory).read()[0]
    assert not Migrations(Path(setup.context.settings.state_directory, "cni")).is_under_way

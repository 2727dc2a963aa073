"""A real Docker Engine whose containers live on Calico networks. Source: libnetwork specification 10 and 12."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from calico_core.lab.host import LabHost
from calico_core.lab.topology import Laboratory
from tests.e2e.observing import MakeLab, kernel_state, workload_keys
from tests.waiting import eventually

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(shutil.which("dockerd") is None, reason="the Docker Engine is not installed"),
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker command line is not installed"),
    pytest.mark.skipif(not Path("/bin/busybox").exists(), reason="busybox-static is not installed"),
]

START_S = 30.0
# the engine looks for plugins at one place only: it gets a /run/docker of its own
START = """set -e
mkdir -p /run/docker
mount -t tmpfs tmpfs /run/docker
mkdir /run/docker/plugins
mount --bind "$1" /run/docker/plugins
shift
exec dockerd "$@"
"""


class Engine:
    """dockerd inside a laboratory host, with everything below ``folder``."""

    def __init__(self, host: LabHost, folder: Path, *options: str, has_own_rules: bool = False) -> None:
        """``has_own_rules``: with the bridge and the iptables rules that it makes by default."""
        self.host = host
        self._defaults = () if has_own_rules else ("--bridge=none", "--iptables=false", "--ip6tables=false")
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("nsenter", f"--net={self.host.namespace}", "unshare", "-m"),
                    *("sh", "-c", START, "sh", str(self.host.plugin_directory)),
                    *("--data-root", str(self._folder / "data"), "--exec-root", str(self._folder / "exec")),
                    *("-p", str(self._folder / "pid"), "-H", self._address, "--storage-driver", "vfs"),
                    *self._defaults,
                    *("--default-ulimit", "nofile=1024:1024", "--default-ulimit", "nproc=1024:1024"),
                    *self._options,
                ],
                env=self.host.environment,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        try:
            while self("info", check=False).returncode:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail("dockerd did not start: " + (self._folder / "log").read_text()[-3000:])
                time.sleep(0.1)
        except BaseException:  # who gets no engine stops none
            self.stop()
            raise

    def stop(self) -> None:
        """As the service manager stops it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def __call__(
        self, *arguments: str, check: bool = True, stdin: bytes | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            ["docker", "-H", self._address, *arguments],
            env={**self.host.environment, "DOCKER_API_VERSION": "1.41"},
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"docker {' '.join(arguments)}: {done.stderr.decode()}")
        return done

    def network(self, name: str, *options: str, check: bool = True) -> str:
        """The id, or what the engine complained of."""
        done = self(*("network", "create", "-d", "calico", "--ipam-driver", "calico-ipam", *options, name), check=check)
        return (done.stdout or done.stderr).decode().strip()

    def run(self, name: str, *options: str) -> str:
        """Start a container that sleeps; its address."""
        self("run", "-d", "--name", name, *options, "bb:1", "/bin/sleep", "600")
        (address,) = (each["IPAddress"] for each in self.inspect(name)["NetworkSettings"]["Networks"].values())
        assert isinstance(address, str)
        return address

    def run_by_api(self, name: str, network: str, *, address: str, mac: str) -> None:
        """As an engine's own client of that age: a newer command line will not send a MAC to it."""
        body = {
            "Image": "bb:1",
            "Cmd": ["/bin/sleep", "600"],
            "MacAddress": mac,
            "HostConfig": {"NetworkMode": network},
            "NetworkingConfig": {"EndpointsConfig": {network: {"IPAMConfig": {"IPv4Address": address}}}},
        }
        for path, content in ((f"create?name={name}", json.dumps(body)), (f"{name}/start", "")):
            connection = http.client.HTTPConnection("localhost")
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(30)
            connection.sock.connect(str(self._folder / "sock"))
            connection.request("POST", f"/v1.41/containers/{path}", content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
            connection.close()
            if response.status >= 300:
                pytest.fail(f"{path}: {text}")

    def remove(self, *names: str) -> None:
        """One after the other. Of endpoints that begin or end at the same moment version 20.10 sometimes counts one too
        many for ever: "has active endpoints", though its own store has none of the network and we have none either."""
        for name in names:
            self("rm", "-f", name)

    def remove_containers(self) -> None:
        containers = self("ps", "-aq", check=False).stdout.decode().split()
        if containers:
            self("rm", "-f", *containers, check=False)

    def inspect(self, name: str) -> Any:
        return json.loads(self("inspect", name).stdout)[0]

    def inside(self, name: str, *argv: str) -> list[str]:
        return self("exec", name, *argv).stdout.decode().splitlines()

    def pings(self, name: str, target: str) -> bool:
        """The answer may take its time on a busy machine. :meth:`is_kept_from` says that none comes."""
        return self._ping(name, target, within_s=10)

    def is_kept_from(self, name: str, target: str) -> bool:
        return not self._ping(name, target, within_s=1)

    def _ping(self, name: str, target: str, *, within_s: int) -> bool:
        argv = ("/bin/ping", "-c", "1", "-W", str(within_s), target)
        return self("exec", name, *argv, check=False).returncode == 0

    @property
    def _address(self) -> str:
        return f"unix://{self._folder}/sock"


@contextlib.contextmanager
def running_engine(host: LabHost, *options: str, has_own_rules: bool = False) -> Iterator[Engine]:
    """With the image ``bb:1``; no container is left behind."""
    with tempfile.TemporaryDirectory(prefix="dk", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        running = Engine(host, folder, *options, has_own_rules=has_own_rules)
        running.start()
        with contextlib.ExitStack() as stack:
            stack.callback(running.stop)
            stack.callback(running.remove_containers)
            root = folder / "rootfs" / "bin"
            root.mkdir(parents=True)
            shutil.copy("/bin/busybox", root / "busybox")
            for program in ("sh", "ip", "ping", "sleep"):
                (root / program).symlink_to("busybox")
            archive = subprocess.run(["tar", "-C", root.parent, "-c", "."], capture_output=True, check=True).stdout
            running("import", "-", "bb:1", stdin=archive)
            yield running


@pytest.fixture
def engine(make_lab: MakeLab) -> Iterator[Engine]:
    host = make_lab(1, nodes=False).hosts[0]
    host.start_node(environment={"CALICO_LIBNETWORK_SCOPE": "local"})
    with running_engine(host) as running:
        yield running


@pytest.fixture
def cluster_store(make_lab: MakeLab) -> Iterator[tuple[Laboratory, str]]:
    """Two hosts, and the etcd in which their engines share networks: these engines speak its version 2."""
    if shutil.which("etcd") is None or shutil.which("bird") is None:
        pytest.skip("etcd or bird is not installed")
    lab = make_lab(2, routing="bird")
    address = lab.hosts[0].addresses[0]
    client, peer = f"http://{address}:12379", f"http://{address}:12380"
    with tempfile.TemporaryDirectory(prefix="dk-store") as folder:
        process = subprocess.Popen(
            ["nsenter", f"--net={lab.hosts[0].namespace}", "etcd", "--enable-v2", "--name", "store",
             "--data-dir", f"{folder}/data", "--unsafe-no-fsync", "--log-level", "error",
             "--listen-client-urls", client, "--advertise-client-urls", client,
             "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"store={peer}"],
        )  # fmt: skip
        ask = ["etcdctl", f"--endpoints={client}", "endpoint", "health"]
        try:
            eventually(lambda: lab.hosts[0].run(ask, environment={"ETCDCTL_API": "3"}, check=False).returncode == 0)
            yield lab, f"etcd://{address}:12379"
        finally:
            process.kill()
            process.wait(10)


def endpoints(host: LabHost) -> list[dict[str, Any]]:
    found = json.loads(host.calicoctl("endpoint", "show", "-o", "json").stdout)
    assert isinstance(found, list)
    return found


def test_networks_connect_and_separate_and_nothing_is_left(engine: Engine) -> None:
    host = engine.host
    before = kernel_state(host)
    profiles = host.calicoctl("profile", "show").stdout
    net1, net2 = engine.network("net1"), engine.network("net2")
    first = engine.run("alpha", "--net", "net1")
    second = engine.run("beta", "--net", "net1")
    third = engine.run("gamma", "--net", "net2")
    assert len({first, second, third}) == 3
    assert engine.pings("alpha", second)
    if "CALICO_IN_CHROOT" not in os.environ:  # there the engine's own name server does not answer
        assert engine.pings("beta", "alpha"), "by name"
    assert engine.is_kept_from("alpha", third)
    assert engine.is_kept_from("gamma", first)
    assert {net1, net2} <= set(host.calicoctl("profile", "show").stdout.split())
    assert engine("network", "rm", "net1", check=False).returncode != 0

    engine.remove("alpha", "beta", "gamma")
    assert endpoints(host) == []
    engine("network", "rm", "net1", "net2")
    assert workload_keys(host) == []
    assert host.calicoctl("profile", "show").stdout == profiles
    assert kernel_state(host) == before


def test_what_a_container_sees(engine: Engine) -> None:
    engine.network("net1", "--subnet", "192.168.0.0/16", "--opt", "org.projectcalico.ifprefix=test")
    engine.run_by_api("alpha", "net1", address="192.168.44.5", mac="02:42:00:00:00:05")
    assert [line.strip() for line in engine.inside("alpha", "/bin/ip", "route")] == [
        "default via 169.254.1.1 dev test0",
        "169.254.1.1 dev test0 scope link",
    ]
    assert any("02:42:00:00:00:05" in line for line in engine.inside("alpha", "/bin/ip", "link", "show", "test0"))
    (endpoint,) = endpoints(engine.host)
    assert (endpoint["orchestrator"], endpoint["workload"]) == ("libnetwork", "libnetwork")
    again = engine("run", "--rm", "--net", "net1", "--ip", "192.168.44.5", "bb:1", "/bin/ip", "route", check=False)
    assert b"The address 192.168.44.5 is already in use" in again.stderr
    engine("restart", "-t", "0", "alpha")
    assert engine.inspect("alpha")["NetworkSettings"]["Networks"]["net1"]["IPAddress"] == "192.168.44.5"
    engine("rm", "-f", "alpha")
    engine("network", "rm", "net1")
    assert workload_keys(engine.host) == []


def test_both_address_families(engine: Engine) -> None:
    engine.network("net1", "--ipv6")
    engine.run("alpha", "--net", "net1")
    engine.run("beta", "--net", "net1")
    settings = engine.inspect("beta")["NetworkSettings"]["Networks"]["net1"]
    assert settings["GlobalIPv6Address"].startswith("fd80:24e2:f998:72d6:")
    assert engine.pings("alpha", settings["IPAddress"])
    eventually(lambda: not engine.is_kept_from("alpha", settings["GlobalIPv6Address"]))  # once the address is settled
    engine.remove("alpha", "beta")
    engine("network", "rm", "net1")
    assert workload_keys(engine.host) == []


def test_addresses_of_the_engine(engine: Engine) -> None:
    """Without our IPAM: a pool that nothing is assigned from, and the engine's bridge for the default route."""
    host = engine.host
    before = host.calicoctl("pool", "show", "-o", "json").stdout
    engine("network", "create", "-d", "calico", "--subnet", "10.99.0.0/24", "--opt", "nat-outgoing=true", "net1")
    assert "10.99.0.0/24" in host.calicoctl("pool", "show").stdout
    engine.run("alpha", "--net", "net1")
    address = engine.run("beta", "--net", "net1")
    assert address.startswith("10.99.0.")
    assert engine.pings("alpha", address)
    engine.remove("alpha", "beta")
    engine("network", "rm", "net1")
    assert host.calicoctl("pool", "show", "-o", "json").stdout == before
    assert workload_keys(host) == []


def test_engines_that_share_a_store(cluster_store: tuple[Laboratory, str]) -> None:
    """A network made on one is there on the other; containers meet across hosts, and networks stay apart."""
    lab, store = cluster_store
    with contextlib.ExitStack() as stack:
        engines = [
            stack.enter_context(
                running_engine(host, "--cluster-store", store, "--cluster-advertise", f"{host.addresses[0]}:2376")
            )
            for host in lab.hosts
        ]
        one, two = engines
        network = one.network("net1")
        two.network("net2")
        assert network in two("network", "ls", "-q", "--no-trunc").stdout.decode().split()
        one.run("alpha", "--net", "net1")
        far = two.run("beta", "--net", "net1")
        stranger = two.run("gamma", "--net", "net2")
        eventually(lambda: not one.is_kept_from("alpha", far), within_s=60)  # a route comes in its time
        assert one.is_kept_from("alpha", stranger)
        assert one("network", "rm", "net1", check=False).returncode != 0
        one("rm", "-f", "alpha")
        two.remove("beta", "gamma")
        one("network", "rm", "net1", "net2")
        assert workload_keys(lab.hosts[0]) == []


def test_beside_the_rules_of_an_engine_with_its_defaults(make_lab: MakeLab) -> None:
    """It drops what is forwarded; its containers on our networks and the workloads of CNI reach each other."""
    lab = make_lab(1, nodes=False)
    (host,) = lab.hosts
    host.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    with running_engine(host, has_own_rules=True) as engine:
        assert ":FORWARD DROP" in host.run(["iptables-save"]).stdout
        host.start_node(environment={"CALICO_LIBNETWORK_SCOPE": "local"})
        network = engine.network("net1")
        engine.run("alpha", "--net", "net1")
        address = engine.run("beta", "--net", "net1")
        host.install_cni()
        workload = lab.add_workload(host)
        workload.attach(network="cluster")
        for profile in (network, workload.network):
            host.calicoctl("profile", profile, "rule", "add", "inbound", "allow")
        assert engine.pings("alpha", address)
        eventually(lambda: not engine.is_kept_from("alpha", str(workload.addresses[0])))
        assert workload.run(["ping", "-c", "1", "-W", "10", address]).returncode == 0
        workload.detach()


def test_second_network_of_a_running_container(engine: Engine) -> None:
    host = engine.host
    for pool in ("10.77.0.0/24", "10.78.0.0/24"):
        host.calicoctl("pool", "add", pool)
    engine.network("net1", "--subnet", "10.77.0.0/24")
    engine.network("net2", "--subnet", "10.78.0.0/24")
    engine.run("alpha", "--net", "net1")
    other = engine.run("beta", "--net", "net2")
    assert other.startswith("10.78.0.")
    assert engine.is_kept_from("alpha", other)
    engine("network", "connect", "net2", "alpha")
    assert "10.78.0.0/24 via 169.254.1.2 dev cali1" in [
        line.strip() for line in engine.inside("alpha", "/bin/ip", "route")
    ]
    assert engine.pings("alpha", other)
    engine("restart", "-t", "0", "alpha")
    assert engine.pings("alpha", other)
    engine("network", "disconnect", "net2", "alpha")
    assert engine.is_kept_from("alpha", other)
    engine.remove("alpha", "beta")
    assert workload_keys(host) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--subnet", "11.0.0.0/24"), "The requested subnet must match the CIDR of a configured Calico IP Pool."),
        (("--internal",), "Calico driver does not support the flag --internal."),
        (("--opt", "a=1", "--opt", "b=2"), "Calico driver does not support the flags a, b."),
        (("--subnet", "192.168.0.0/16", "--ip-range", "192.168.4.0/24"), "does not support sub pools"),
        (("--subnet", "192.168.0.0/16", "--gateway", "192.168.0.1"), "does not support specifying a gateway"),
        (("--ipam-opt", "a=1"), "Arbitrary options are not supported"),
    ],
)
def test_what_is_refused(engine: Engine, options: tuple[str, ...], text: str) -> None:
    assert text in engine.network("net1", *options, check=False)
    assert workload_keys(engine.host) == []


def test_ten_at_once(engine: Engine) -> None:
    engine.network("net1")
    names = [f"c{number}" for number in range(10)]
    with ThreadPoolExecutor(5) as pool:
        addresses = list(pool.map(lambda name: engine.run(name, "--net", "net1"), names))
    assert len(set(addresses)) == 10
    assert engine.pings("c0", addresses[-1])
    engine("rm", "-f", *names)
    assert workload_keys(engine.host) == []


def test_node_that_restarts_under_running_containers(engine: Engine) -> None:
    engine.network("net1")
    address = engine.run("alpha", "--net", "net1")
    engine.host.stop_node()
    engine.host.start_node(environment={"CALICO_LIBNETWORK_SCOPE": "local"})
    engine.run("beta", "--net", "net1")
    assert engine.pings("beta", address)
    engine.remove("alpha", "beta")
    engine("network", "rm", "net1")
    assert workload_keys(engine.host) == []


def test_calls_of_the_engine_while_the_node_starts_anew(engine: Engine) -> None:
    """They wait in the plugin's socket: the engine neither fails nor tries again later."""
    engine.network("net1")
    names = [f"c{number}" for number in range(6)]
    with ThreadPoolExecutor(7) as pool:
        restarting = pool.submit(engine.host.calicoctl, "node", "restart")
        addresses = list(pool.map(lambda name: engine.run(name, "--net", "net1"), names))
        assert "serves after" in restarting.result(60).stdout
    assert len(set(addresses)) == 6
    assert engine.pings("c0", addresses[-1])
    engine("rm", "-f", *names)
    # not "network rm": the engine may have miscounted those that began at one moment, see Engine.remove
    assert workload_keys(engine.host) == []

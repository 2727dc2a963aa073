"""Two hosts with a real BIRD each, in network namespaces of their own."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.errors import ConfigRejected, DaemonDown, RoutingError
from calico_core.interfaces.routing import Peer, RoutingOptions, RoutingState
from calico_core.routing.bird import BirdRouting
from calico_core.routing.bird_control import BirdControl
from tests import waiting

pytestmark = pytest.mark.needs_root

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
SESSION_LIMIT_S = 40.0
_numbers = itertools.count()


class Host:
    """A namespace, a thread that stands in it, and a run directory. What the thread starts runs in the namespace."""

    def __init__(self, directory: Path) -> None:
        self.namespace = f"brd-{os.getpid()}-{next(_numbers)}"
        self.directory = directory
        subprocess.run(["ip", "netns", "add", self.namespace], check=True)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, initializer=self._enter)
        self.routing = self.reopen()
        self.ip("link set lo up")

    def _enter(self) -> None:
        descriptor = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        assert ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) == 0
        os.close(descriptor)

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        return self._thread.submit(function, *arguments).result(60)

    def reopen(self) -> BirdRouting:
        """As a new runtime would find things."""
        self.routing = BirdRouting.open(RoutingOptions(host="x", run_directory=str(self.directory)))
        return self.routing

    def configure(self, state: RoutingState) -> None:
        self.run(self.routing.configure, state)

    def ip(self, command: str) -> str:
        argv = ["ip", "-n", self.namespace, *command.split()]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout

    def route(self, destination: str) -> str:
        return self.ip(f"-{IPNetwork(destination).version} route show {destination}").strip()

    @property
    def pid(self) -> int:
        return int((self.directory / "bird.pid").read_text())

    @property
    def control(self) -> BirdControl:
        return BirdControl(self.directory / "bird.ctl")

    def sessions(self) -> dict[str, tuple[str, str]]:
        return {str(peer.ip): (peer.state, peer.since) for peer in self.routing.status().peers}

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(self.pid, signal.SIGKILL)
        self._thread.shutdown()
        subprocess.run(["ip", "netns", "del", self.namespace], check=True)


class Pair:
    """``left`` has one block a family, and workload routes as the agent writes them; ``right`` has nothing."""

    def __init__(self, left: Host, right: Host) -> None:
        self.left, self.right = left, right
        left.ip(f"link add up0 type veth peer name up0 netns {right.namespace}")
        for number, host in enumerate((left, right), 1):
            host.ip(f"address add 10.77.0.{number}/24 dev up0")
            host.ip(f"address add fd77::{number}/64 dev up0 nodad")
            host.ip("link set up0 up")
        for device in ("cali1", "vx0.calico"):
            left.ip(f"link add {device} type veth peer name w-{device[:4]}")
            left.ip(f"link set {device} up")
            left.ip(f"link set w-{device[:4]} up")
        left.ip("route add 192.168.10.5/32 dev cali1 proto 80")
        left.ip("route add 192.168.99.7/32 dev cali1 proto 80")
        left.ip("route add 10.50.0.9/32 dev cali1 proto 80")
        left.ip("route add 172.30.5.0/26 dev vx0.calico proto 80")
        left.ip("-6 route add fd80::a05/128 dev cali1 proto 80 metric 512")
        left.ip("-6 route add fd80::b05/128 dev cali1 proto 80 metric 512")

    def state(self, number: int, **fields: Any) -> RoutingState:
        other = 3 - number
        peers = tuple(
            Peer(
                ip=IPAddress(f"{prefix}{other}"), as_number=64511, origin="mesh", description=f"n-{other}",
                is_passive=other > number,
            )
            for prefix in ("10.77.0.", "fd77::")
        )  # fmt: skip
        blocks = ("192.168.10.0/26", "fd80::a00/122", "172.30.9.0/26") if number == 1 else ()
        defaults: dict[str, Any] = {
            "host": f"n-{number}",
            "as_number": 64511,
            "ipv4": IPAddress(f"10.77.0.{number}"),
            "ipv6": IPAddress(f"fd77::{number}"),
            "router_id": IPAddress(f"10.77.0.{number}"),
            "peers": peers,
            "blocks": tuple(IPNetwork(block) for block in blocks),
            "pools": tuple(IPNetwork(pool) for pool in ("192.168.0.0/16", "172.30.0.0/16", "fd80::/64")),
            "encapsulated": (IPNetwork("172.30.0.0/16"),),
        }
        return RoutingState(**{**defaults, **fields})

    def establish(self) -> None:
        self.left.configure(self.state(1))
        self.right.configure(self.state(2))
        eventually(lambda: self.is_established and not self.is_restarting)

    @property
    def is_established(self) -> bool:
        found = [*self.left.sessions().values(), *self.right.sessions().values()]
        return [state for state, _ in found] == ["Established"] * 4

    @property
    def is_restarting(self) -> bool:
        """One has not heard again of all that the other had before it was killed. Killed once more, the other would
        lose it: routes are kept over one restart, not over two (RFC 4724, section 4.2)."""
        said = [line.text for host in (self.left, self.right) for line in host.control.ask("show protocols all")]
        return any("graceful restart active" in each for each in said)


def command_line(pid: int) -> bytes:
    """Empty for one that has ended, whether somebody waited for it or not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


eventually = partial(waiting.eventually, within_s=SESSION_LIMIT_S, every_s=0.05)


def always(condition: Callable[[], bool], until: Callable[[], object]) -> None:
    """``condition`` holds at every look until ``until`` does."""

    def look() -> object:
        assert condition()
        return until()

    eventually(look)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if shutil.which("bird", path="/usr/sbin:/usr/bin:/sbin:/usr/local/sbin") is None:
        pytest.skip("the bird binary is not installed")
    with contextlib.ExitStack() as stack:
        hosts = []
        for name in ("left", "right"):
            hosts.append(Host(tmp_path_factory.mktemp(name) / "run"))
            stack.callback(hosts[-1].close)
        yield Pair(*hosts)


@pytest.fixture
def established(pair: Pair) -> Pair:
    """Both hosts' sessions up, with the default states."""
    pair.establish()
    return pair


def test_routes_reach_the_peers_kernel(established: Pair) -> None:
    left, right = established.left, established.right
    eventually(lambda: right.route("192.168.10.0/26") and right.route("192.168.99.7/32"))
    eventually(lambda: right.route("fd80::a00/122") and right.route("fd80::b05/128"))
    assert right.route("192.168.10.0/26") == "192.168.10.0/26 via 10.77.0.1 dev up0 proto bird metric 1024"
    assert "via 10.77.0.1 dev up0 proto bird" in right.route("192.168.99.7/32")
    assert "via fd77::1 dev up0 proto bird metric 1024" in right.route("fd80::a00/122")
    # hidden behind the block, of a pool nobody announces, of a tunnel, of a pool the agent routes
    hidden = ("192.168.10.5/32", "fd80::a05/128", "10.50.0.9/32", "172.30.5.0/26", "172.30.9.0/26")
    assert [right.route(destination) for destination in hidden] == [""] * 5
    assert left.route("192.168.10.0/26") == "blackhole 192.168.10.0/26 proto bird metric 1024"
    assert left.route("172.30.9.0/26") == ""
    assert "proto bird" not in left.route("10.77.0.0/24")


def test_same_state_does_nothing(established: Pair) -> None:
    left = established.left
    before = left.control.status().last_reconfiguration, (left.directory / "bird.conf").stat().st_ino
    left.configure(established.state(1))
    assert (left.control.status().last_reconfiguration, (left.directory / "bird.conf").stat().st_ino) == before


def test_new_pool_keeps_the_sessions(established: Pair) -> None:
    left, right = established.left, established.right
    before = left.sessions(), right.sessions(), left.pid
    pools = (*established.state(1).pools, IPNetwork("10.50.0.0/16"))
    left.configure(established.state(1, pools=pools))
    eventually(lambda: right.route("10.50.0.9/32"))
    assert (left.sessions(), right.sessions(), left.pid) == before
    left.configure(established.state(1))
    eventually(lambda: not right.route("10.50.0.9/32"))
    assert (left.sessions(), right.sessions(), left.pid) == before


def test_new_runtime_adopts_the_daemon(established: Pair) -> None:
    left = established.left
    before = left.sessions(), left.pid
    left.routing.close(stop_daemon=False)
    left.reopen()
    assert left.routing.status().is_running
    left.configure(established.state(1))
    assert (left.sessions(), left.pid) == before


def test_new_runtime_has_an_adopted_daemon_read_the_file(established: Pair) -> None:
    """The former runtime ended between writing the file and telling the daemon."""
    left, right = established.left, established.right
    wider = established.state(1, pools=(*established.state(1).pools, IPNetwork("10.50.0.0/16")))
    left.configure(wider)
    text = (left.directory / "bird.conf").read_bytes()
    left.configure(established.state(1))
    eventually(lambda: not right.route("10.50.0.9/32"))
    (left.directory / "bird.conf").write_bytes(text)
    left.reopen()
    left.configure(wider)
    eventually(lambda: right.route("10.50.0.9/32"))


def test_refused_configuration_changes_nothing(established: Pair) -> None:
    left = established.left
    before = left.sessions(), left.pid, (left.directory / "bird.conf").read_bytes()
    good = established.state(1)
    impossible = tuple(msgspec.structs.replace(peer, as_number=2**33) for peer in good.peers)
    with pytest.raises(ConfigRejected) as caught:
        left.configure(established.state(1, peers=impossible))
    assert caught.value.line > 1
    assert "/calico/bgp/v1/host/n-2/ip_addr_v4" in caught.value.reason
    assert (left.sessions(), left.pid, (left.directory / "bird.conf").read_bytes()) == before
    assert not (left.directory / "bird.conf.new").exists()
    assert left.routing.status().rejected == str(caught.value)
    left.configure(good)
    assert left.routing.status().rejected == ""


def test_status_of_peers_without_a_session(established: Pair) -> None:
    left = established.left
    extra = (
        Peer(ip=IPAddress("10.77.0.1"), as_number=64511, origin="global"),
        Peer(ip=IPAddress("10.77.0.99"), as_number=65000, origin="node"),
    )
    left.configure(established.state(1, peers=(*established.state(1).peers, *extra)))
    found = left.sessions()
    assert found["10.77.0.1"][0] == "Idle (this node)"
    assert found["10.77.0.99"][0] in {"Idle", "Active", "Connect"}
    assert found["10.77.0.2"][0] == "Established"


def test_killed_daemon_comes_back_and_no_route_was_lost(established: Pair) -> None:
    left, right = established.left, established.right
    eventually(lambda: right.route("192.168.10.0/26") and right.route("fd80::a00/122"))
    killed = left.pid
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: not left.routing.status().is_running)
    left.configure(established.state(1))
    assert left.pid != killed
    watched = ("192.168.10.0/26", "192.168.99.7/32", "fd80::a00/122", "fd80::b05/128")
    always(lambda: all(right.route(each) for each in watched), until=lambda: established.is_established)
    assert left.route("192.168.10.0/26").startswith("blackhole")


def test_stopped_daemon_leaves_the_routes(established: Pair) -> None:
    left, right = established.left, established.right
    eventually(lambda: right.route("192.168.99.7/32"))
    pid = left.pid
    left.run(lambda: left.routing.close(stop_daemon=True))
    left.run(lambda: left.routing.close(stop_daemon=True))
    assert not command_line(pid)
    assert not left.routing.status().is_running
    assert left.route("192.168.10.0/26").startswith("blackhole")
    assert right.route("192.168.99.7/32")
    left.configure(established.state(1))
    always(lambda: bool(right.route("192.168.99.7/32")), until=lambda: established.is_established)


def test_daemon_of_another_namespace_is_not_ours(established: Pair) -> None:
    stranger = BirdRouting.open(RoutingOptions(host="x", run_directory=str(established.left.directory)))
    with pytest.raises(DaemonDown, match="another network namespace"):
        established.right.run(stranger.configure, established.state(1))


def test_socket_of_a_daemon_we_do_not_know(established: Pair) -> None:
    left = established.left
    pid_file = left.directory / "bird.pid"
    content = pid_file.read_text()
    pid_file.write_text("1\n")
    try:
        with pytest.raises(RoutingError, match="belongs to a daemon that is not in"):
            left.configure(established.state(1))
    finally:
        pid_file.write_text(content)
    assert left.routing.status().is_running


def test_program_not_installed(tmp_path: Path, pair: Pair) -> None:
    routing = BirdRouting(tmp_path / "run", search_path=str(tmp_path))
    with pytest.raises(DaemonDown, match="install BIRD 2"):
        routing.configure(pair.state(1))
    assert not (tmp_path / "run" / "bird.conf").exists()
    assert not routing.status().is_running

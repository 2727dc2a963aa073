"""Docker's, firewalld's and kube-proxy's rules beside ours: none touched, and traffic passes both."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from calico_core.dataplane.nftables.beside_docker import CHAIN
from calico_core.model.hoststate import HostPools, PolicyList
from tests.integration.dataplane_nftables.test_nftables_hosts import FAILSAFE, endpoint
from tests.integration.dataplane_nftables.test_nftables_kernel import POOL
from tests.integration.dataplane_nftables.test_nftables_nat import connected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.needs_root

RULES = Path(__file__).parents[2] / "fixtures" / "foreign_rules"
_COUNTERS = re.compile(r"counter packets \d+ bytes \d+|\[\d+:\d+\]|^#.*$", re.MULTILINE)
_OURS = re.compile(r"^table inet calico \{\n(?:.*\n)*?^\}\n", re.MULTILINE)


def load(lab: Any, name: str, workload: Any = None) -> None:
    text = (RULES / name).read_text().replace("{WORKLOAD}", workload.v4 if workload is not None else "")
    program = ("nft", "-f", "-") if name.endswith(".nft") else ("iptables-nft-restore", "--noflush")
    lab.host.run(*program, stdin=text)


def foreign(lab: Any) -> str:
    """Everything but our table, without what counts."""
    parts = [_OURS.sub("", lab.nft("list", "ruleset"))]
    parts += [lab.host.run(f"{program}-legacy-save") for program in ("iptables", "ip6tables")]
    return _COUNTERS.sub("", "\n".join(parts))


def live(lab: Any, a: Any, b: Any) -> Iterator[str]:
    """A life of ours, step by step."""
    pools = HostPools(all=(POOL,), masquerade=(POOL,))
    lab.dataplane.ensure_closed()
    yield "closed"
    lab.start(a.endpoint(), b.endpoint(), pools=pools, interfaces=(endpoint(),))
    yield "applied"
    lab.apply(workloads=(b.endpoint(PolicyList()),), removed_interfaces=("up0",))
    lab.apply(workloads=(b.endpoint(),))
    yield "changed"
    lab.nft("delete", "table", "inet", "calico")
    assert lab.dataplane.resync().healed
    yield "repaired"
    lab.restart()
    lab.start(a.endpoint(), b.endpoint(), pools=pools)
    yield "restarted"


@pytest.mark.parametrize("name", ["firewalld.nft", "kube_proxy.iptables", "kube_proxy.nft"])
def test_rules_of_others_are_not_touched(make_lab: Callable[..., Any], name: str) -> None:
    lab = make_lab(**FAILSAFE)
    a, b = lab.workload(), lab.workload()
    lab.outside()
    load(lab, name, a)
    before = foreign(lab)
    assert before.count("\n") > 40
    for step in live(lab, a, b):
        assert foreign(lab) == before, step
        if step != "closed":
            assert b.reaches(a.v4, 80), step
    lab.dataplane.purge()
    assert foreign(lab) == before
    assert "calico" not in lab.nft("list", "tables")


@pytest.mark.parametrize("name", ["kube_proxy.iptables", "kube_proxy.nft"])
def test_services_lead_to_workloads_under_policy(lab: Any, name: str) -> None:
    a, b = lab.workload(), lab.workload()
    load(lab, name, a)
    lab.start(a.endpoint(), b.endpoint())
    with contextlib.ExitStack() as stack:
        *_, peer = stack.enter_context(_service(b, a))
        assert peer == b.v4, "seen as it is: policy can judge it"
    lab.apply(workloads=(a.endpoint(PolicyList()),))
    with pytest.raises(TimeoutError), _service(b, a):
        pass


@contextlib.contextmanager
def _service(client: Any, server: Any) -> Any:
    with connected(client, server, server.v4, "10.96.0.10", port=80) as ends:
        yield ends


def test_firewalld_still_refuses_what_it_refuses(lab: Any) -> None:
    a = lab.workload()
    neighbour = lab.outside()
    neighbour.run("ip", "route", "add", "10.65.0.0/16", "via", "192.0.2.1")
    lab.start(a.endpoint())
    assert neighbour.reaches(a.v4, 80)
    load(lab, "firewalld.nft")
    assert neighbour.is_blocked_from(a.v4, 80), "our accept ends our hook only"
    assert a.reaches("192.0.2.2", 80)


class Docker:
    """dockerd with its defaults in the lab's host, everything of it below a folder."""

    def __init__(self, lab: Any, folder: Path) -> None:
        self._lab = lab
        self._log = (folder / "log").open("ab")
        self._process = subprocess.Popen(
            [
                # not "ip netns exec": that hides the control groups
                *("nsenter", f"--net=/run/netns/{lab.host.name}", "unshare", "-m", "sh", "-c"),
                'mkdir -p /run/docker && mount -t tmpfs tmpfs /run/docker && exec dockerd "$@"',
                *("sh", "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
                *("-p", str(folder / "pid"), "-H", f"unix://{folder}/s", "--storage-driver", "vfs"),
            ],
            stdout=self._log,
            stderr=self._log,
        )
        deadline = time.monotonic() + 40
        try:
            while "API listen on" not in (text := (folder / "log").read_text()):
                assert self._process.poll() is None, text[-3000:]
                assert time.monotonic() < deadline, text[-3000:]
                time.sleep(0.1)
        except BaseException:  # who gets no engine stops none
            self.stop()
            raise

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._log.close()


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize("ending", [(), ("-j", "RETURN")], ids=["open", "returning"])
def test_chain_for_others_on_either_backend(lab: Any, backend: str, ending: tuple[str, ...]) -> None:
    """As Docker leaves it, both families, old and new versions of it, without Docker."""
    a, b = lab.workload(), lab.workload()
    for program in (f"iptables-{backend}", f"ip6tables-{backend}"):
        lab.host.run(program, "-P", "FORWARD", "DROP")
        lab.host.run(program, "-N", "DOCKER-USER")
        lab.host.run(program, "-A", "FORWARD", "-j", "DOCKER-USER")
        if ending:
            lab.host.run(program, "-A", "DOCKER-USER", *ending)
    before = foreign(lab)
    report = lab.start(a.endpoint(), b.endpoint())
    assert report.is_clean
    assert b.reaches(a.v4, 80)
    assert b.reaches(a.v6, 80)
    assert lab.dataplane.resync().healed == ()
    lab.restart()
    assert lab.start(a.endpoint(), b.endpoint()).changes == 0
    for program in (f"iptables-{backend}", f"ip6tables-{backend}"):
        lab.host.run(program, "-F", CHAIN)
    assert b.is_blocked_from(a.v4, 80)
    assert set(lab.dataplane.resync().healed) == {f"ip{six}tables-{backend} DOCKER-USER" for six in ("", "6")}
    assert b.reaches(a.v4, 80)
    assert b.reaches(a.v6, 80)
    lab.dataplane.purge()
    assert foreign(lab) == before


@pytest.fixture
def docker(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    if shutil.which("dockerd") is None:
        pytest.skip("the Docker Engine is not installed")
    # it drops what is forwarded where it was the one to switch forwarding on: where it came first
    lab.host.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    made = Docker(lab, tmp_path_factory.mktemp("d"))
    yield made
    made.stop()


@pytest.mark.usefixtures("docker")
def test_workloads_reach_each_other_beside_docker_with_its_defaults(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    neighbour = lab.outside()
    neighbour.run("ip", "route", "add", "10.65.0.0/16", "via", "192.0.2.1")
    before = foreign(lab)
    assert ":FORWARD DROP" in lab.host.run("iptables-save")
    lab.start(a.endpoint(), b.endpoint())
    assert b.reaches(a.v4, 80)
    assert b.reaches(a.v6, 80)
    assert b.reaches("192.0.2.2", 80)
    assert neighbour.reaches(a.v4, 80)
    lab.apply(workloads=(a.endpoint(PolicyList()),))
    assert b.is_blocked_from(a.v4, 80), "policy is ours all the same"
    lab.apply(workloads=(a.endpoint(),))
    assert lab.dataplane.resync().healed == ()

    # the administrator's own rules come first, and what somebody flushed comes back
    lab.host.run("iptables", "-F", "DOCKER-USER")
    assert b.is_blocked_from(a.v4, 80)
    assert lab.dataplane.resync().healed == (f"{_program(lab)} DOCKER-USER",)
    assert b.reaches(a.v4, 80)
    lab.host.run("iptables", "-I", "DOCKER-USER", "-p", "tcp", "--dport", "81", "-j", "DROP")
    assert b.is_blocked_from(a.v4, 81)
    assert lab.dataplane.resync().healed == ()
    lab.host.run("iptables", "-D", "DOCKER-USER", "-p", "tcp", "--dport", "81", "-j", "DROP")
    lab.host.run("iptables", "-A", "DOCKER-USER", "-j", "RETURN")

    lab.dataplane.purge()
    assert foreign(lab) == before
    assert CHAIN not in lab.host.run("iptables-save")


@pytest.mark.usefixtures("docker")
def test_docker_keeps_its_own_containers_closed(lab: Any) -> None:
    a = lab.workload()
    container = lab.namespace()
    lab.host.run("ip", "link", "add", "veth9", "type", "veth", "peer", "name", "eth0", "netns", container.name)
    lab.host.run("ip", "link", "set", "veth9", "master", "docker0", "up")
    gateway = lab.host.run("ip", "-4", "-o", "address", "show", "docker0").split()[3].split("/")[0]
    container.run("ip", "address", "add", gateway.rpartition(".")[0] + ".9/16", "dev", "eth0")
    container.run("ip", "link", "set", "eth0", "up")
    container.run("ip", "route", "add", "default", "via", gateway)
    lab.start(a.endpoint())
    assert container.reaches(a.v4, 80)
    assert a.is_blocked_from(gateway.rpartition(".")[0] + ".9", 80), "no published port leads there"


def _program(lab: Any) -> str:
    return f"iptables-{'nft' if 'nf_tables' in lab.host.run('iptables', '--version') else 'legacy'}"

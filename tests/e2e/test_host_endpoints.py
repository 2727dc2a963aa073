"""A host under policy: closed to its neighbours but for what policy and the fail-safe ports leave open, while it goes
on forwarding for its workloads; and ``calicoctl explain`` says the same. The laboratory of a driver is made once."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytest
from click.testing import CliRunner

from calico_core.cli.main import calicoctl
from calico_core.lab.host import LabHost
from calico_core.lab.probes import probe_until
from calico_core.lab.station import Station
from calico_core.lab.topology import Laboratory
from tests.e2e.observing import MakeLab, kernel_handles, passes

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.needs_root

End = Literal["host", "neighbour", "here", "there"]
UPLINK = "eth0"
_has_iptables = shutil.which("iptables") is not None and shutil.which("ipset") is not None
DRIVERS = (
    "nftables",
    pytest.param(
        "iptables", marks=pytest.mark.skipif(not _has_iptables, reason="iptables and ipset are not installed")
    ),
)


class Flow(NamedTuple):
    source: End
    target: End
    port: int


SERVED, CLOSED, SAFE = (Flow("neighbour", "host", port) for port in (80, 81, 22))
OWN = Flow("host", "neighbour", 81)
INTO, INTO_TOO, INTO_SSH = (Flow("there", "here", port) for port in (8080, 8081, 22))
OUT = Flow("here", "there", 8081)
LOCAL = Flow("here", "host", 81)
FLOWS = (SERVED, CLOSED, SAFE, OWN, INTO, INTO_TOO, INTO_SSH, OUT, LOCAL)


class Scene:
    """Two hosts with a workload each, of one network; the first host is the one under policy."""

    def __init__(self, lab: Laboratory) -> None:
        self.host, self.neighbour = lab.hosts
        here, there = (lab.add_workload(each) for each in lab.hosts)
        for each in (here, there):
            each.attach(network="net1")
        self.ends: dict[End, Station] = {
            "host": self.host,
            "neighbour": self.neighbour,
            "here": here,
            "there": there,
        }
        # as a routing daemon would
        for on, workload, via in ((self.host, there, self.neighbour), (self.neighbour, here, self.host)):
            on.run(["ip", "route", "replace", str(workload.addresses[0]), "via", str(via.addresses[0])])
        self.await_flow(INTO, is_open=True)

    def put_under_policy(self) -> None:
        ctl = self.host.calicoctl
        ctl("tier", "add", "hosts", "--order", "1")
        rules = ("--inbound", "allow tcp to ports 80", "--outbound", "allow")
        ctl("policy", "add", "hosts", "edge", "--selector", "role == 'edge'", "--order", "1", *rules)
        ctl("host-endpoint", "add", "uplink", "--interface", UPLINK, "--label", "role=edge")

    def judge_forwarded(self, *inbound: str) -> None:
        """A policy for what is forwarded, too."""
        rules = [word for rule in inbound for word in ("--inbound", rule)]
        options = ("--selector", "role == 'edge'", "--order", "2", "--types", "ingress", "--apply-on-forward")
        self.host.calicoctl("policy", "add", "hosts", "through", *options, *rules)

    def clear(self) -> None:
        """As it was before any policy."""
        for words in (
            ("host-endpoint", "remove", "uplink"),
            *(("policy", "remove", "hosts", name) for name in ("early", "through", "edge")),
            ("tier", "remove", "hosts"),
        ):
            self._ctl(*words)
        for flow in FLOWS:
            self.await_flow(flow, is_open=True)

    def await_flow(self, flow: Flow, *, is_open: bool) -> None:
        source, target = self.ends[flow.source], self.ends[flow.target]
        result = probe_until(source, target, "tcp", flow.port, is_reachable=is_open, within_s=30)
        assert result.is_reachable == is_open, flow

    def check(self, *closed: Flow) -> None:
        """Every flow but those passes, by its packets and by what is said of it."""
        wrong = []
        for flow in FLOWS:
            is_open = self.passes(flow, is_expected=flow not in closed)
            said = self.explain(flow)["verdict"]
            # "not asked": neither end is under policy
            if not (is_open == (said != "denied") == (flow not in closed)):
                wrong.append((flow, is_open, said))
        assert not wrong

    def passes(self, flow: Flow, *, is_expected: bool) -> bool:
        return passes(self.ends[flow.source], self.ends[flow.target], "tcp", flow.port, is_expected=is_expected)

    def explain(self, flow: Flow) -> dict[str, Any]:
        words = ("--from", self._word(flow.source), "--to", self._word(flow.target), "--port", str(flow.port))
        found: dict[str, Any] = json.loads(self._ctl("-o", "json", "explain", *words))
        return found

    def steps(self, flow: Flow) -> str:
        return json.dumps([step for side in self.explain(flow)["sides"] for step in side["steps"]])

    def _ctl(self, *words: str) -> str:
        """In this process: the start of one is most of what the tool takes, and these are many."""
        return CliRunner().invoke(calicoctl, words, env=self.host.environment).output

    def _word(self, end: End) -> str:
        station = self.ends[end]
        return f"host:{station.name}" if isinstance(station, LabHost) else str(station.addresses[0])


@pytest.fixture(scope="module", params=DRIVERS)
def standing(make_module_lab: MakeLab, request: pytest.FixtureRequest) -> Scene:
    return Scene(make_module_lab(2, environment={"CALICO_DATAPLANE_DRIVER": request.param}))


@pytest.fixture
def scene(standing: Scene) -> Iterator[Scene]:
    yield standing
    standing.clear()


def test_policy_closes_the_host_and_not_what_it_forwards(scene: Scene) -> None:
    scene.check()
    scene.put_under_policy()
    scene.await_flow(CLOSED, is_open=False)
    scene.check(CLOSED)
    assert "fail-safe" in scene.steps(SAFE)
    assert '"edge"' in scene.steps(SERVED)
    scene.judge_forwarded("deny tcp to ports 22,8081", "pass")
    scene.await_flow(INTO_TOO, is_open=False)
    scene.check(CLOSED, INTO_TOO, INTO_SSH)
    assert '"through"' in scene.steps(INTO_TOO)
    scene.host.calicoctl("host-endpoint", "remove", "uplink")
    scene.await_flow(CLOSED, is_open=True)
    scene.check()


def test_what_is_allowed_before_translation_is_not_asked_again(scene: Scene) -> None:
    scene.put_under_policy()
    scene.judge_forwarded("deny tcp to ports 22,8081", "pass")
    scene.await_flow(INTO_TOO, is_open=False)
    options = ("--selector", "role == 'edge'", "--order", "0", "--pre-dnat", "--apply-on-forward")
    scene.host.calicoctl("policy", "add", "hosts", "early", *options, "--inbound", "allow tcp to ports 81,8081")
    scene.await_flow(CLOSED, is_open=True)
    scene.check(INTO_SSH)


def test_restart_keeps_every_chain(scene: Scene) -> None:
    host = scene.host
    scene.put_under_policy()
    scene.judge_forwarded("deny tcp to ports 22,8081", "pass")
    scene.await_flow(CLOSED, is_open=False)
    scene.await_flow(INTO_TOO, is_open=False)
    before = kernel_handles(host)
    assert any("host_fwd_in" in each or "FORWARD" in each for each in before)
    host.kill_node()
    for flow in FLOWS:
        is_expected = flow not in (CLOSED, INTO_TOO, INTO_SSH)
        assert scene.passes(flow, is_expected=is_expected) is is_expected, flow
    host.start_node()
    assert kernel_handles(host) == before
    scene.check(CLOSED, INTO_TOO, INTO_SSH)
    # and policy is followed as before
    host.calicoctl("policy", "remove", "hosts", "through")
    scene.await_flow(INTO_TOO, is_open=True)
    scene.check(CLOSED)

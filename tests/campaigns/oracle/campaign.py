"""Cases asked one after the other: three opinions of a packet that must agree.

A naive evaluator (:mod:`naive`) reads the stored records, ours (``policy.explain`` and ``policy.flows``) what the
resolver makes of them, and real packets (:mod:`bench`) what the driver under test made of that. Answers belong to it:
what is rejected is told so, and replies and errors about a packet pass if and only if it did.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from netaddr import IPAddress

from calico_core.errors import CalicoError
from calico_core.model import codec
from calico_core.model.hoststate import HostState
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import Key, WorkloadEndpointKey
from calico_core.model.policies import Policy
from calico_core.policy.explain import Packet, explain
from calico_core.policy.flows import Cluster
from calico_core.policy.resolver import PolicyResolver
from tests.campaigns.oracle import naive, wire
from tests.campaigns.oracle.bench import HOST, OUTSIDE, Bench, Sending
from tests.campaigns.oracle.cases import (
    FAILSAFE_IN,
    FAILSAFE_OUT,
    FAILSAFE_TEXTS,
    KNOWN_HOST,
    OTHER_HOST,
    OWN_MAC,
    PAIRS,
    flow_of,
    merged,
    stored_bytes,
)
from tests.campaigns.oracle.cases import cases as random_cases

if TYPE_CHECKING:
    from collections.abc import Callable

_HOST_ENDPOINTS = f"/calico/v1/host/{naive.HOST}/endpoint/"
HOSTS = frozenset({*KNOWN_HOST, *OTHER_HOST})


class Difference(NamedTuple):
    """Opinions of one packet, ``allow``, ``deny`` or ``reject``; None: not asked."""

    probe: dict[str, Any]
    what: str
    naive: str
    flows: str | None
    explain: str | None
    kernel: str

    def __str__(self) -> str:
        opinions = f"naive {self.naive}, flows {self.flows}, explain {self.explain}, kernel {self.kernel}"
        return f"{self.what} {json.dumps(self.probe)}: {opinions}"


class Disagreement(AssertionError):
    """Of a case."""

    def __init__(self, differences: list[Difference], case: dict[str, Any]) -> None:
        super().__init__("\n".join(map(str, differences)))
        self.differences, self.case = differences, case


class Oracle:
    """``verdicts`` counts the packets that were judged, ``outcomes`` what became of them."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.verdicts = 0
        self.outcomes: Counter[str] = Counter()

    def ask(self, case: dict[str, Any]) -> None:
        """:raises Disagreement: opinions differ."""
        records = merged(case["steps"])
        state = self._program(case)
        inbound, outbound = FAILSAFE_TEXTS
        good, _ = _decoded(records.items())
        cluster = Cluster(
            good,
            endpoint_to_host=case["to_host"],
            source_spoofing=case.get("spoofing", "Disabled"),
            failsafe_inbound=inbound,
            failsafe_outbound=outbound,
        )
        place = _place_of(case, answers_early=self._bench.answers_early)
        is_untracked = any(isinstance(record, Policy) and record.untracked for _, record in good)
        probes = [
            probe for probe in case["probes"] if not (_is_to_itself(probe) or (is_untracked and probe.get("stray")))
        ]
        numbers = [self._bench.number() for _ in probes]
        seen = self._bench.send(map(_sending, probes, numbers))
        differences: list[Difference] = []
        arrived: list[bool] = []
        for probe, number in zip(probes, numbers, strict=True):
            expected = _expected(records, place, probe)
            kernel = _fate(seen, probe, number)
            if expected == "either":
                expected, kernel = "deny", "deny" if kernel == "reject" else kernel
            arrived.append(kernel == "allow")
            opinions = _real(records, cluster, state, probe, case["to_host"])
            self._judge(differences, Difference(probe, "packet", expected, *opinions, kernel))
        if not is_untracked:
            routed = {str(net.ip) for each in state.workloads.values() if each.is_active for net in each.nets}
            self._follow(probes, numbers, arrived, differences, routed)
        if differences:
            asked = {**case, "probes": [each.probe for each in differences]}
            raise Disagreement(differences, asked)

    def _program(self, case: dict[str, Any]) -> HostState:
        """By the resolver and the driver, step by step."""
        dataplane = self._bench.dataplane(case["to_host"])
        resolver, state = PolicyResolver(naive.HOST, lets_spoof=_lets_spoof(case)), HostState()
        resolver.set_interface(naive.UPLINK, frozenset(map(IPAddress, KNOWN_HOST)))
        for step in case["steps"]:
            good, bad = _decoded(step.items())
            resolver.apply([*good, *((key, None) for key in bad)])
            resolver.in_sync()
            changes = resolver.flush()
            state.update(changes)
            report = dataplane.apply(changes)
            if not report.is_clean:
                raise Disagreement([Difference({}, f"the driver: {report.failures}", "", None, None, "")], case)
        self._bench.forget_connections()
        return state

    def _follow(
        self,
        probes: list[dict[str, Any]],
        numbers: list[int],
        arrived: list[bool],
        differences: list[Difference],
        routed: set[str],
    ) -> None:
        """``routed``: the addresses of workloads that something leads back to."""
        followers = [
            (probe, number, has_arrived, self._bench.number())
            for probe, number, has_arrived in zip(probes, numbers, arrived, strict=True)
            if _may_follow(probe, has_arrived=has_arrived)
            and (probe["src"] in routed or not (has_arrived and probe["via"].startswith("cali")))
        ]
        seen = self._bench.send(_answer(probe, number, own) for probe, number, _, own in followers)
        for probe, number, has_arrived, own in followers:
            sign = wire.Seen(own) if probe["follow"] == "reply" else wire.Seen(number, "error")
            kernel = "allow" if sign in seen[probe["via"]] else "deny"
            expected = "allow" if has_arrived else "deny"
            self._judge(differences, Difference(probe, probe["follow"], expected, None, None, kernel))

    def _judge(self, differences: list[Difference], opinions: Difference) -> None:
        self.verdicts += 1
        self.outcomes[opinions.kernel] += 1
        told = "deny" if opinions.naive == "reject" else opinions.naive
        if opinions.kernel != opinions.naive or {opinions.flows, opinions.explain} - {None, told}:
            differences.append(opinions)


# --- opinions ------------------------------------------------------------------------------------------------------


def _place_of(case: dict[str, Any], *, answers_early: bool) -> naive.Place:
    def texts(ports: Any) -> tuple[naive.Failsafe, ...]:
        return tuple((protocol, port, None if net is None else str(net)) for protocol, port, net in ports)

    uplink = frozenset(KNOWN_HOST)
    ports = texts(FAILSAFE_IN), texts(FAILSAFE_OUT)
    return naive.Place(HOSTS, uplink, case["to_host"], *ports, answers_early, _lets_spoof(case))


def _lets_spoof(case: dict[str, Any]) -> bool:
    return case.get("spoofing") == "Any"


def _expected(records: naive.Stored, place: naive.Place, probe: dict[str, Any]) -> str:
    if probe.get("stray"):
        return "deny"  # 6.1, 6.5: invalid for connection tracking
    mac = probe.get("mac") or OWN_MAC.format(probe["via"][-1:])
    return naive.judge(records, place, flow_of(probe), probe["via"], mac)


def _fate(seen: dict[str, set[wire.Seen]], probe: dict[str, Any], number: int) -> str:
    """It arrived where it was sent, and nowhere else; or its sender was told that it may not; or nothing."""
    got = {where for where, these in seen.items() if wire.Seen(number) in these}
    if got:
        return "allow" if got == {_place(probe["dst"])} else f"arrived at {sorted(got)}"
    return "reject" if wire.Seen(number, "prohibited") in seen[_place(probe["src"])] else "deny"


def _real(
    records: naive.Stored, cluster: Cluster, state: HostState, probe: dict[str, Any], to_host: str
) -> tuple[str | None, str | None]:
    """What ``flows`` and ``explain`` say, where it is theirs to say: they know nothing of interfaces and MACs, of
    connections, and of addresses of the host that no record names."""
    flow, via = flow_of(probe), probe["via"]
    packet = Packet(
        src=IPAddress(flow.src), dst=IPAddress(flow.dst), protocol=flow.protocol,
        src_port=flow.sport, dst_port=flow.dport, icmp=flow.icmp,
    )  # fmt: skip
    if probe.get("stray") or probe.get("mac") or flow.dport == 4789:
        return None, None
    sender, is_own = None, True
    if via.startswith("cali"):
        sender = WorkloadEndpointKey(naive.HOST, "k8s", f"w{via[4:]}", "eth0")
        workload = state.workloads.get(sender)
        if workload is None:
            return None, None
        is_own = any(packet.src in net for net in workload.nets)
    # which of several endpoints is an interface's, and whether it has one, only the host knows
    count = sum(1 for path in records if path.startswith(_HOST_ENDPOINTS))
    is_certain = not count or (count == 1 and naive.UPLINK in state.interfaces)
    is_asked_as_foreign = via == OUTSIDE or to_host == "DROP" or flow.dport == 53 or bool(count)
    is_to_other = flow.dst in OTHER_HOST and is_asked_as_foreign
    flows = None
    if is_certain and not is_to_other:
        sides = [side for side in cluster.explain(packet, source=sender).sides if side.host in (naive.HOST, None)]
        flows = "deny" if any(side.outcome == "deny" for side in sides) else "allow"
    return flows, _told(state, packet, to_host, via) if is_own else None


def _told(state: HostState, packet: Packet, to_host: str, via: str) -> str | None:
    """``explain`` knows the workloads of the host, and nothing else."""
    dst = str(packet.dst)
    if (dst in HOSTS and (to_host == "DROP" or packet.dst_port == 53)) or not via or state.interfaces:
        return None
    outcome = explain(state, packet).outcome
    is_nowhere = _place(dst) not in (HOST, OUTSIDE) and not any(
        packet.dst in net for each in state.workloads.values() for net in each.nets
    )
    return None if outcome == "unaffected" or is_nowhere else outcome


# --- packets ---------------------------------------------------------------------------------------------------------


def _place(address: str) -> str:
    if address in HOSTS:
        return HOST
    return next((f"cali{n}" for n, pair in enumerate(PAIRS) if address in (*pair[0], *pair[1])), OUTSIDE)


def _is_to_itself(probe: dict[str, Any]) -> bool:
    return probe["src"] == probe["dst"] or bool(probe["via"] == _place(probe["dst"]))


def _sending(probe: dict[str, Any], number: int) -> Sending:
    flow = flow_of(probe)
    icmp, flags = flow.icmp or (0, 0), wire.SYN
    if probe.get("stray"):
        icmp, flags = ((0, 0) if flow.version == 4 else (129, 0)), wire.SYN_ACK
    ip = wire.packet(flow.src, flow.dst, flow.protocol, number, sport=flow.sport or 0, dport=flow.dport or 0,
                     icmp=icmp, ident=number & 0xFFFF, flags=flags)  # fmt: skip
    return Sending(probe["via"], ip, probe.get("mac"))


def _may_follow(probe: dict[str, Any], *, has_arrived: bool) -> bool:
    """A UDP "reply" to what did not arrive would be a flow of its own, and so with protocols that only have
    addresses."""
    follow = probe.get("follow")
    if follow is None or _place(probe["src"]) != probe["via"]:
        return False
    is_bare = probe["protocol"] in (wire.SCTP, 200)
    return not is_bare if has_arrived else not is_bare and (follow != "reply" or probe["protocol"] != wire.UDP)


def _answer(probe: dict[str, Any], number: int, own: int) -> Sending:
    flow, place = flow_of(probe), _place(probe["dst"])
    if probe["follow"] != "reply":
        about = _sending(probe, number).ip
        return Sending(place, wire.error(flow.dst, flow.src, about, is_too_big=probe["follow"] == "too big"))
    icmp = ({8: 0, 13: 14, 128: 129}[flow.icmp[0]], flow.icmp[1]) if flow.icmp else (0, 0)
    ip = wire.packet(flow.dst, flow.src, flow.protocol, own, sport=flow.dport or 0, dport=flow.sport or 0,
                     icmp=icmp, ident=number & 0xFFFF, flags=wire.SYN_ACK, answers=number)  # fmt: skip
    return Sending(place, ip)


def _decoded(items: Any) -> tuple[list[tuple[Key, Any]], list[Key]]:
    """As the syncer does it: what does not decode is as good as deleted."""
    good: list[tuple[Key, Any]] = []
    bad: list[Key] = []
    for path, record in items:
        key = parse_key(path)
        assert key is not None, path
        try:
            good.append((key, None if record is None else codec.decode(key, stored_bytes(path, record))))
        except CalicoError:
            bad.append(key)
    return good, bad


# --- the campaign ----------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    verdicts: int
    outcomes: Counter[str]
    seconds: float
    disagreement: Disagreement | None

    @property
    def differ(self) -> int:
        return len(self.disagreement.differences) if self.disagreement is not None else 0

    @property
    def last_line(self) -> str:
        return f"{self.verdicts} verdicts, {self.differ} differ"


def run(*, cases: int, seed: int, dataplane: str) -> Result:
    """Random cases; the first that differs is made as small as it can be."""
    with Bench(dataplane) as bench:
        oracle = Oracle(bench)

        @with_seed(seed)
        @settings(
            max_examples=cases, deadline=None, database=None, report_multiple_bugs=False, print_blob=False,
            phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=random_cases)
        def every_case(case: dict[str, Any]) -> None:
            oracle.ask(case)

        return _result(oracle, every_case)


def replay(case: dict[str, Any], *, dataplane: str) -> Result:
    """One case again."""
    with Bench(dataplane) as bench:
        oracle = Oracle(bench)
        return _result(oracle, lambda: oracle.ask(case))


def _result(oracle: Oracle, ask: Callable[[], None]) -> Result:
    started = time.monotonic()
    disagreement = None
    try:
        ask()
    except Disagreement as error:
        disagreement = error
    return Result(oracle.verdicts, oracle.outcomes, time.monotonic() - started, disagreement)

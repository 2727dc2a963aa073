"""Cases asked one after the other: three opinions of a packet that must agree.

A naive evaluator (:mod:`naive`) reads the stored records, ours (``policy.explain`` and ``policy.flows``) what the
resolver makes of them, and real packets (:mod:`bench`) what the driver under test made of that. Answers belong to it:
what is rejected is told so, and replies and errors about a packet pass if and only if it did. So does how it looks:
what arrives has the addresses that the naive reading says, and answers come from whom the sender spoke to.

Not judged by packets is what policy on another host says of a masqueraded source, since there is one host here only
(the tests of ``flows`` hold that), and which of its addresses a host masquerades behind: that is its kernel's choice.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis.errors import Flaky
from netaddr import IPAddress

from calico_core.errors import CalicoError
from calico_core.model import codec
from calico_core.model.hoststate import HostState
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import Key
from calico_core.model.policies import Policy
from calico_core.policy.flows import Cluster
from calico_core.policy.resolver import PolicyResolver
from calico_core.policy.set_limit import close_rules
from calico_core.settings import Settings
from tests.campaigns.oracle import naive, ways, wire
from tests.campaigns.oracle.bench import Arrived, Bench, Sending
from tests.campaigns.oracle.cases import (
    FAILSAFE_IN,
    FAILSAFE_OUT,
    FAILSAFE_TEXTS,
    IPV6_SUPPORT,
    KNOWN_HOST,
    LOOPBACK,
    METADATA_PORT,
    METADATA_SERVER,
    OTHER_HOST,
    OWN_MAC,
    OWN_NETS,
    PAIRS,
    SET_LIMIT,
    connection_of,
    flow_of,
    merged,
    stored_bytes,
)
from tests.campaigns.oracle.cases import cases as random_cases
from tests.campaigns.oracle.opinions import real
from tests.campaigns.oracle.set_limit import with_closed_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOSTS = frozenset({*KNOWN_HOST, *OTHER_HOST, LOOPBACK})


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


class _Asked(NamedTuple):
    """One packet of a case: its number, and what the naive reading says."""

    probe: dict[str, Any]
    number: int
    fate: naive.Fate


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
        self.first: Disagreement | None = None
        """Of the opinions that were found to differ."""

    def ask(self, case: dict[str, Any]) -> None:
        """:raises Disagreement: opinions differ."""
        try:
            self._ask(case)
        except Disagreement as error:
            self.first = self.first or error
            raise

    def _ask(self, case: dict[str, Any]) -> None:
        stored = merged(case["steps"])
        limit = int(stored[SET_LIMIT]) if SET_LIMIT in stored else None
        state = self._program(case, limit)
        inbound, outbound = FAILSAFE_TEXTS
        good, _ = _decoded(stored.items())
        records = stored if limit is None else with_closed_rules(stored, limit)
        cluster = Cluster(
            good,
            defaults=Settings(
                endpoint_to_host=case["to_host"],
                source_spoofing=case.get("spoofing", "Disabled"),
                failsafe_inbound=inbound,
                failsafe_outbound=outbound,
            ),
        )
        server = stored.get(METADATA_SERVER)
        place = _place_of(case, answers_early=self._bench.answers_early)
        place = place._replace(
            metadata=None if server is None else (server, METADATA_PORT), has_ipv6=IPV6_SUPPORT not in stored
        )
        is_untracked = any(isinstance(record, Policy) and record.untracked for _, record in good)
        asked = list(self._chosen(records, place, case["probes"], is_untracked=is_untracked))
        seen = self._bench.send(_sending(each.probe, each.number) for each in asked)
        differences: list[Difference] = []
        for probe, number, fate in asked:
            expected, sender = fate.outcome, ways.interface_of(records, place, probe["src"])
            if expected == "reject" and _hears_nothing(probe, fate.way, sender):
                expected = "either"
            kernel = _found(seen, number, fate.way, sender)
            if expected == "either":
                expected, kernel = "deny", "deny" if kernel == "reject" else kernel
            opinions = real(records, cluster, state, probe, fate.way, case["to_host"])
            self._judge(differences, Difference(probe, "packet", expected, *opinions, kernel))
        if not is_untracked:
            self._follow(records, place, asked, seen, differences)
        if differences:
            again = {**case, "probes": [each.probe for each in differences]}
            raise Disagreement(differences, again)

    def _chosen(
        self, records: ways.Stored, place: ways.Place, probes: list[dict[str, Any]], *, is_untracked: bool
    ) -> Iterator[_Asked]:
        """Those that can be told from one another and from what never leaves: no two are of one connection, translated
        or not."""
        connections: set[object] = set()
        for probe in probes:
            fate = _expected(records, place, probe)
            is_turned = fate.way.flow.dst == probe["dst"] and probe["via"] == fate.way.to
            if probe["src"] == probe["dst"] or is_turned or (is_untracked and probe.get("stray")):
                continue
            # of a masqueraded source no more is known than that it is the host's, and to that go its answers
            flow = fate.way.flow
            own = "host" if flow.src not in fate.way.sources or flow.src in HOSTS else flow.src
            connection = connection_of(flow._replace(src=own, dst="host" if flow.dst in HOSTS else flow.dst))
            if connection not in connections:
                connections.add(connection)
                yield _Asked(probe, self._bench.number(), fate)

    def _program(self, case: dict[str, Any], limit: int | None) -> HostState:
        """By the resolver and the driver, step by step. ``limit``: members of one set."""
        first = case["steps"][0]
        dataplane = self._bench.dataplane(
            case["to_host"], limit, first.get(METADATA_SERVER), has_ipv6=IPV6_SUPPORT not in first
        )
        resolver, state = PolicyResolver(ways.HOST, lets_spoof=_lets_spoof(case)), HostState()
        resolver.set_interface(ways.UPLINK, frozenset(map(IPAddress, KNOWN_HOST)))
        for step in case["steps"]:
            good, bad = _decoded(step.items())
            resolver.apply([*good, *((key, None) for key in bad)])
            resolver.in_sync()
            changes = resolver.flush()
            state.update(changes)
            report = dataplane.apply(changes)
            beyond = frozenset() if limit is None else _beyond(state, limit)
            if {failure.subject for failure in report.failures} != beyond:
                raise Disagreement([Difference({}, f"the driver: {report.failures}", "", None, None, "")], case)
        self._bench.forget_connections()
        if limit is not None:
            close_rules(state, limit)
        return state

    def _follow(
        self,
        records: ways.Stored,
        place: ways.Place,
        asked: list[_Asked],
        seen: dict[str, Arrived],
        differences: list[Difference],
    ) -> None:
        """Answers to what arrived, as it looked there, and to what did not."""
        followers: list[tuple[_Asked, bool, int]] = []
        sendings: list[Sending] = []
        for each in asked:
            data = seen.get(each.fate.way.to, {}).get(wire.Seen(each.number))
            is_sender_there = ways.interface_of(records, place, each.probe["src"]) == each.probe["via"]
            if is_sender_there and _may_follow(each.probe, has_arrived=data is not None):
                own = self._bench.number()
                followers.append((each, data is not None, own))
                sendings.append(_answer(each, data or _packet(each.probe, each.fate.way.flow, each.number), own))
        answers = self._bench.send(sendings)
        for (probe, number, _), has_arrived, own in followers:
            follow = probe["follow"]
            data = answers[probe["via"]].get(wire.Seen(own) if follow == "reply" else wire.Seen(number, "error"))
            kernel = "deny" if data is None else "allow"
            if data is not None and wire.read_head(data)[:2] != (probe["dst"], probe["src"]):
                kernel = f"came as {wire.read_head(data)}"
            self._judge(differences, Difference(probe, follow, "allow" if has_arrived else "deny", None, None, kernel))

    def _judge(self, differences: list[Difference], opinions: Difference) -> None:
        self.verdicts += 1
        self.outcomes[opinions.kernel] += 1
        told = "deny" if opinions.naive == "reject" else opinions.naive
        if opinions.kernel != opinions.naive or {opinions.flows, opinions.explain} - {None, told}:
            differences.append(opinions)


# --- opinions ------------------------------------------------------------------------------------------------------


def _place_of(case: dict[str, Any], *, answers_early: bool) -> ways.Place:
    def texts(ports: Any) -> tuple[ways.Failsafe, ...]:
        return tuple((protocol, port, None if net is None else str(net)) for protocol, port, net in ports)

    uplink = frozenset(KNOWN_HOST)
    ports = texts(FAILSAFE_IN), texts(FAILSAFE_OUT)
    return ways.Place(HOSTS, uplink, OWN_NETS, case["to_host"], *ports, answers_early, _lets_spoof(case))


def _beyond(state: HostState, limit: int) -> frozenset[str]:
    """What a driver has to complain of: sets, and the rules that name them, of staged policies too."""
    sizes = close_rules(state.copy(), limit).sizes
    naming = {
        rules.id
        for rules in state.rules.values()
        for rule in (*rules.inbound, *rules.outbound)
        if not sizes.keys().isdisjoint((*rule.sets, *rule.port_sets))
    }
    return frozenset({*sizes, *naming})


def _lets_spoof(case: dict[str, Any]) -> bool:
    return case.get("spoofing") == "Any"


def _expected(records: ways.Stored, place: ways.Place, probe: dict[str, Any]) -> naive.Fate:
    flow = flow_of(probe)
    if probe.get("stray"):
        return naive.judge_stray(records, place, flow, probe["via"])
    mac = probe.get("mac") or OWN_MAC.format(probe["via"][-1:])
    return naive.judge(records, place, flow, probe["via"], mac)


def _hears_nothing(probe: dict[str, Any], way: ways.Way, sender: str) -> bool:
    """Of a rejection: nothing leads back to what it may send from, or the kernel cannot tell the packet from a broken
    one, for translation does not mend the checksum of a protocol that it does not know (it looks for one in IPv6)."""
    is_broken = probe["protocol"] in (200, 4) and way.flow.version == 6 and way.flow.dst != probe["dst"]
    return sender == ways.NOWHERE or is_broken


def _found(seen: dict[str, Arrived], number: int, way: ways.Way, sender: str) -> str:
    """It arrived where it was sent, and nowhere else, and as it should look there; or its sender was told that it may
    not; or nothing."""
    got = {where: these[wire.Seen(number)] for where, these in seen.items() if wire.Seen(number) in these}
    if not got:
        return "reject" if wire.Seen(number, "prohibited") in seen.get(sender, ()) else "deny"
    if got.keys() != {way.to}:
        return f"arrived at {sorted(got)}"
    data = got[way.to]
    if data:
        src, dst = wire.read_head(data)[:2]
        if src not in way.sources or dst != way.flow.dst:
            return f"arrived as from {src} to {dst}"
    return "allow"


# --- packets ---------------------------------------------------------------------------------------------------------


def _sending(probe: dict[str, Any], number: int) -> Sending:
    return Sending(probe["via"], _packet(probe, flow_of(probe), number), probe.get("mac"))


def _packet(probe: dict[str, Any], flow: ways.Flow, number: int) -> bytes:
    icmp, flags = flow.icmp or (0, 0), wire.SYN
    if probe.get("stray"):
        icmp, flags = ((0, 0) if flow.version == 4 else (129, 0)), wire.SYN_ACK
    return wire.packet(flow.src, flow.dst, flow.protocol, number, sport=flow.sport or 0, dport=flow.dport or 0,
                       icmp=icmp, ident=number & 0xFFFF, flags=flags)  # fmt: skip


def _may_follow(probe: dict[str, Any], *, has_arrived: bool) -> bool:
    """A UDP "reply" to what did not arrive would be a flow of its own, and so with protocols that only have
    addresses."""
    follow = probe.get("follow")
    is_bare = probe["protocol"] in (wire.SCTP, 200, 4)
    if follow is None or is_bare:
        return False
    return has_arrived or follow != "reply" or probe["protocol"] != wire.UDP


def _answer(asked: _Asked, data: bytes, own: int) -> Sending:
    """``data``: the packet as it looked where it arrived, or would have. What leads nowhere, the container answers."""
    probe, number, (_, way) = asked
    place, head = way.to, wire.read_head(data)
    if place == ways.NOWHERE:
        place = next(f"cali{n}" for n, pair in enumerate(PAIRS) if way.flow.dst in (*pair[0], *pair[1]))
    if probe["follow"] != "reply":
        return Sending(place, wire.error(head.dst, head.src, data, is_too_big=probe["follow"] == "too big"))
    kind = probe.get("icmp")
    icmp = ({8: 0, 13: 14, 128: 129}[kind[0]], kind[1]) if kind else (0, 0)
    ip = wire.packet(head.dst, head.src, probe["protocol"], own, sport=head.dport or 0, dport=head.sport or 0,
                     icmp=icmp, ident=head.ident or 0, flags=wire.SYN_ACK, answers=number)  # fmt: skip
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
    has_repeated: bool = True
    """The disagreement, when the same case was asked again."""

    @property
    def differ(self) -> int:
        return len(self.disagreement.differences) if self.disagreement is not None else 0

    @property
    def last_line(self) -> str:
        return f"{self.verdicts} verdicts, {self.differ} differ"


def run(*, cases: int, seed: int, dataplane: str) -> Result:
    """Random cases; the first that differs is made as small as it can be."""
    with Bench(dataplane) as bench:
        return ask_random(Oracle(bench), cases=cases, seed=seed)


FIND, FIND_SMALLEST = (Phase.generate,), (Phase.generate, Phase.shrink)


def ask_random(oracle: Oracle, *, cases: int, seed: int, phases: tuple[Phase, ...] = FIND_SMALLEST) -> Result:
    @with_seed(seed)
    @settings(
        max_examples=cases, deadline=None, database=None, report_multiple_bugs=False, print_blob=False,
        phases=phases, suppress_health_check=list(HealthCheck),
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
    disagreement, has_repeated = None, True
    try:
        ask()
    except Disagreement as error:
        disagreement = error
    except Flaky:  # a case was asked again, and the opinions were others
        if oracle.first is None:
            raise
        disagreement, has_repeated = oracle.first, False
    return Result(oracle.verdicts, oracle.outcomes, time.monotonic() - started, disagreement, has_repeated)

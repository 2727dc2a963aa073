"""A slice of the packet oracle: random policies, three opinions on every packet. ``nox -s oracle`` asks for longer."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.campaigns.oracle import campaign
from tests.campaigns.oracle.bench import Bench
from tests.campaigns.oracle.cases import FLOATING, OUTSIDE, PAIRS, workload_path

if TYPE_CHECKING:
    from calico_core.model.hoststate import HostState

pytestmark = pytest.mark.needs_root
_has_iptables = shutil.which("iptables") is not None and shutil.which("ipset") is not None


@pytest.mark.parametrize(
    ("dataplane", "cases"),
    [
        ("nftables", 60),
        pytest.param(
            *("iptables", 15),
            marks=pytest.mark.skipif(not _has_iptables, reason="iptables and ipset are not installed"),
        ),
    ],
)
def test_naive_reading_evaluator_and_kernel_agree(dataplane: str, cases: int) -> None:
    result = campaign.run(cases=cases, seed=20, dataplane=dataplane)
    assert result.disagreement is None, f"{result.disagreement.case}\n{result.disagreement}"
    assert result.outcomes["allow"] > 300
    assert result.outcomes["deny"] > 300


@pytest.mark.parametrize("action", ["pass", "next-tier"])
@pytest.mark.parametrize(
    "dataplane",
    [
        "nftables",
        pytest.param(
            "iptables", marks=pytest.mark.skipif(not _has_iptables, reason="iptables and ipset are not installed")
        ),
    ],
)
def test_what_a_profile_passes_on_is_allowed(dataplane: str, action: str) -> None:
    """Felix specification 4.5.4. The profile behind it would deny what the first one allows."""
    passes = {each: [{"action": action, "protocol": "tcp"}] for each in ("inbound_rules", "outbound_rules")}
    denies = {each: [{"action": "deny"}] for each in ("inbound_rules", "outbound_rules")}
    records: dict[str, Any] = {
        "/calico/v1/policy/profile/first/rules": passes,
        "/calico/v1/policy/profile/last/rules": denies,
    }
    for number in (0, 1):
        v4, v6 = PAIRS[number]
        records[workload_path(number)] = {
            "state": "active",
            "name": f"cali{number}",
            "profile_ids": ["first", "last"],
            "ipv4_nets": [f"{v4[0]}/32"],
            "ipv6_nets": [f"{v6[0]}/128"],
        }
    probes = [
        {
            "via": "cali0", "src": PAIRS[0][family][0], "dst": PAIRS[1][family][0],
            "protocol": protocol, "sport": 1000, "dport": 80,
        }
        for family in (0, 1)
        for protocol in (6, 17)
    ]  # fmt: skip
    with Bench(dataplane) as bench:
        oracle = campaign.Oracle(bench)
        oracle.ask({"to_host": "RETURN", "steps": [records], "probes": probes})
    assert oracle.outcomes == {"allow": 2, "deny": 2}


@pytest.mark.parametrize(
    "dataplane",
    [
        "nftables",
        pytest.param(
            "iptables", marks=pytest.mark.skipif(not _has_iptables, reason="iptables and ipset are not installed")
        ),
    ],
)
def test_what_is_let_in_untracked_is_not_translated(dataplane: str) -> None:
    """It comes to the workload by the route of the floating address, and its policy sees that."""
    own, external = PAIRS[0][0][0], FLOATING[0][0]
    untracked = {"selector": "all()", "untracked": True, "apply_on_forward": True,
                 "inbound_rules": [{"action": "allow", "protocol": "tcp"}]}  # fmt: skip
    records: dict[str, Any] = {
        "/calico/v1/host/here/endpoint/e0": {"name": "up0", "profile_ids": ["p0"]},
        "/calico/v1/policy/tier/default/policy/early": untracked,
        workload_path(0): {
            "state": "active",
            "name": "cali0",
            "profile_ids": ["p0"],
            "ipv4_nets": [f"{own}/32"],
            "ipv4_nat": [{"ext_ip": external, "int_ip": own}],
        },
    }
    ends = {"via": "up0", "src": OUTSIDE[0][0], "dst": external, "sport": 1000, "dport": 80}
    probes = [{**ends, "protocol": protocol} for protocol in (6, 17)]
    seen: list[dict[str, int]] = []
    with Bench(dataplane) as bench:
        for net in (own, external):
            rules = {"inbound_rules": [{"action": "allow", "dst_net": f"{net}/32", "protocol": "udp"}]}
            records["/calico/v1/policy/profile/p0/rules"] = rules
            oracle = campaign.Oracle(bench)
            oracle.ask({"to_host": "RETURN", "steps": [records], "probes": probes})
            seen.append(dict(oracle.outcomes))
            rules["inbound_rules"][0]["protocol"] = "tcp"
            oracle.ask({"to_host": "RETURN", "steps": [records], "probes": probes})
            seen.append(dict(oracle.outcomes))
    # UDP is translated, so only its own address counts; TCP is not, so only the floating one does
    assert seen == [{"allow": 1, "deny": 1}, {"allow": 1, "deny": 3}, {"deny": 2}, {"allow": 1, "deny": 3}]


class Undone(campaign.Oracle):
    """Somebody else removes what the driver has just made."""

    what = ("delete", "table", "inet", "calico")

    def _program(self, case: dict[str, Any], limit: int | None) -> HostState:
        state = super()._program(case, limit)
        self._bench.run_on_host("nft", *self.what)
        return state


class Untranslated(Undone):
    what = ("flush", "chain", "inet", "calico", "nat_postrouting")


def test_a_kernel_that_does_otherwise_is_seen() -> None:
    records = {
        workload_path(number): {
            "state": "active",
            "name": f"cali{number}",
            "profile_ids": ["closed"],
            "ipv4_nets": [f"{PAIRS[number][0][0]}/32"],
        }
        for number in (0, 1)
    }
    probe = {"via": "cali0", "src": PAIRS[0][0][0], "dst": PAIRS[1][0][0], "protocol": 6, "sport": 1000, "dport": 80}
    case = {"to_host": "RETURN", "steps": [records], "probes": [probe]}
    with Bench("nftables") as bench:
        oracle = campaign.Oracle(bench)
        oracle.ask(case)
        assert oracle.outcomes == {"deny": 1}
        with pytest.raises(campaign.Disagreement) as found:
            Undone(bench).ask(case)
        assert [(each.naive, each.explain, each.kernel) for each in found.value.differences] == [
            ("deny", "deny", "allow")
        ]
        assert found.value.case["probes"] == [probe], "the case can be asked again"


def test_translation_is_judged_by_how_packets_look() -> None:
    """Out of a masqueraded pool, and a workload at its own floating address: who is seen to have sent it."""
    own, external = PAIRS[0][0][0], FLOATING[0][0]
    records = {
        "/calico/v1/policy/profile/open/rules": {
            each: [{"action": "allow"}] for each in ("inbound_rules", "outbound_rules")
        },
        "/calico/v1/ipam/v4/pool/10.65.0.0-16": {"cidr": "10.65.0.0/16", "masquerade": True},
        workload_path(0): {
            "state": "active",
            "name": "cali0",
            "profile_ids": ["open"],
            "ipv4_nets": [f"{own}/32"],
            "ipv4_nat": [{"ext_ip": external, "int_ip": own}],
        },
    }
    ends = [("cali0", own, OUTSIDE[0][0]), ("cali0", own, external), ("up0", OUTSIDE[0][0], external)]
    probes = [
        {"via": via, "src": src, "dst": dst, "protocol": 6, "sport": 1000, "dport": 80, "follow": "reply"}
        for via, src, dst in ends
    ]
    case = {"to_host": "RETURN", "steps": [records], "probes": probes}
    with Bench("nftables") as bench:
        oracle = campaign.Oracle(bench)
        oracle.ask(case)
        assert oracle.outcomes == {"allow": 6}
        with pytest.raises(campaign.Disagreement) as found:
            Untranslated(bench).ask(case)
    arrived = [each.kernel for each in found.value.differences if each.what == "packet"]
    assert arrived == [f"arrived as from {own} to {OUTSIDE[0][0]}", f"arrived as from {own} to {own}"]

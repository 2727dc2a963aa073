"""``calicoctl policy`` and ``calicoctl tier``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from calico_core.model.keys import PolicyKey, TierKey
from calico_core.model.policies import Policy, Tier
from calico_core.model.rules import Rule

if TYPE_CHECKING:
    from pathlib import Path

    from calico_core.datastore.records import TypedRecords
    from tests.unit.cli.conftest import Calicoctl

WEB = {
    "tier": "t",
    "name": "web",
    "policy": {"selector": "role == 'web'", "inbound_rules": [{"protocol": "tcp", "dst_ports": [80]}]},
}
YAML = """
tier: t
name: first
policy: {selector: all(), order: 1, types: [egress], outbound_rules: [{action: deny, protocol: udp}]}
---
- name: plain
  policy: {selector: "has(x)"}
"""


@pytest.fixture
def tiers(calicoctl: Calicoctl) -> Calicoctl:
    assert calicoctl.ok("tier", "add", "t", "--order", "5") == "tier t created\n"
    return calicoctl


def test_apply_show_remove(tiers: Calicoctl, records: TypedRecords, tmp_path: Path) -> None:
    assert tiers.ok("policy", "apply", "-f", "-", stdin=json.dumps(WEB)) == "policy t/web created\n"
    assert tiers.ok("policy", "apply", "-f", "-", stdin=json.dumps(WEB)) == "policy t/web unchanged\n"
    file = tmp_path / "p.yaml"
    file.write_text(YAML)
    assert tiers.ok("policy", "apply", "-f", str(file), "--dry-run").endswith("default/plain created (dry run)\n")
    assert records.get(PolicyKey("t", "first")) is None
    assert tiers.ok("policy", "apply", "-f", str(file)) == "policy t/first created\npolicy default/plain created\n"
    found = records.get(PolicyKey("t", "first"))
    assert found is not None
    assert found.record.outbound_rules == (Rule(action="deny", protocol="udp"),)
    shown = tiers("policy", "show", "-o", "json").json
    assert [(row["tier"], row["name"]) for row in shown] == [("t", "first"), ("t", "web"), ("default", "plain")]
    assert [row["name"] for row in tiers("policy", "show", "default", "-o", "json").json] == ["plain"]
    assert "   1 allow tcp to ports 80" in tiers.ok("policy", "show", "t", "web")
    changed = {**WEB, "policy": {"selector": "all()"}}
    assert tiers.ok("policy", "apply", "-f", "-", stdin=json.dumps([changed])) == "policy t/web updated\n"
    assert tiers.ok("policy", "remove", "t", "web") == "policy t/web removed\n"
    assert tiers("policy", "remove", "t", "web").code == 4
    assert "nothing to remove" in tiers.ok("policy", "remove", "t", "web", "--ignore-missing")
    assert tiers("policy", "show", "t", "web").code == 4


@pytest.mark.parametrize(
    ("document", "code", "says"),
    [
        ({**WEB, "policy": {"selecto": "all()"}}, 2, "did you mean 'selector'"),
        ({**WEB, "policy": {"selector": "has("}}, 2, "policy: selector"),
        ({**WEB, "policy": {"selector": "all()", "inbound_rules": [{"dst_ports": [1]}]}}, 2, "policy.inbound_rules[0]"),
        ({**WEB, "policy": {"selector": "all()", "id": "other"}}, 2, "policy.id"),
        ({**WEB, "name": "a/b"}, 2, "name"),
        ({**WEB, "kind": "Policy"}, 2, "kind: is no field"),
        ({**WEB, "policy": None}, 2, "policy: give the policy"),
        ([WEB, WEB], 2, "twice"),
        ([WEB, {**WEB, "name": ""}], 2, "document 2: name"),
        ([], 2, "no document"),
        ({**WEB, "tier": "nowhere"}, 4, "tier add nowhere"),
    ],
)
def test_nothing_is_written_of_a_bad_file(
    tiers: Calicoctl, records: TypedRecords, document: object, code: int, says: str
) -> None:
    before = records.store.list("/calico/").entries
    done = tiers("policy", "apply", "-f", "-", stdin=json.dumps(document))
    assert done.code == code
    assert says in done.err
    assert records.store.list("/calico/").entries == before


def test_files_that_cannot_be_read(tiers: Calicoctl, tmp_path: Path) -> None:
    assert "No such file" in tiers("policy", "apply", "-f", str(tmp_path / "none")).err
    done = tiers("policy", "apply", "-f", "-", stdin="tier: t\nname: [")
    assert (done.code, "line" in done.err) == (2, True)


def test_more_than_a_transaction_holds(tiers: Calicoctl, records: TypedRecords) -> None:
    many = [{**WEB, "name": f"p{number}"} for number in range(70)]
    assert tiers.ok("policy", "apply", "-f", "-", stdin=json.dumps(many)).count("created") == 70
    assert len(records.list("/calico/v1/policy/tier/t/policy/")) == 70


def test_tiers(tiers: Calicoctl, records: TypedRecords) -> None:
    assert tiers.ok("tier", "add", "t", "--order", "5") == "tier t unchanged\n"
    assert tiers.ok("tier", "add", "t", "--order", "5", "--default-action", "pass") == "tier t updated\n"
    found = records.get(TierKey("t"))
    assert found is not None
    assert found.record == Tier(order=5.0, default_action="pass")
    tiers.ok("tier", "add", "early", "--order", "-1")
    tiers.ok("policy", "apply", "-f", "-", stdin=json.dumps([WEB, {**WEB, "tier": "default"}]))
    rows = tiers("tier", "show", "-o", "json").json
    assert [(row["tier"], row["policies"]) for row in rows] == [("early", 0), ("t", 1), ("default", 1)]
    assert tiers("tier", "add", "x", "--order", "nan").code == 2
    assert tiers("tier", "add", "a b").code == 2
    refused = tiers("tier", "remove", "t")
    assert (refused.code, "1 policies" in refused.err) == (5, True)
    tiers.ok("tier", "remove", "early")
    assert tiers("tier", "remove", "early").code == 4
    tiers.ok("tier", "remove", "early", "--ignore-missing")


def test_what_does_not_decode_is_named_and_replaced(tiers: Calicoctl, records: TypedRecords) -> None:
    records.store.put(PolicyKey("t", "web").path, b"{}")
    done = tiers("policy", "show")
    assert "does not decode" in done.err
    assert tiers.ok("policy", "apply", "-f", "-", stdin=json.dumps(WEB)) == "policy t/web updated\n"


def test_add(tiers: Calicoctl, records: TypedRecords) -> None:
    add = (
        "policy", "add", "t", "edge", "--selector", "role == 'edge'", "--order", "3", "--types", "egress,ingress",
        "--inbound", "allow tcp to ports 80,http", "--inbound", "reject", "--outbound", "allow", "--apply-on-forward",
    )  # fmt: skip
    assert tiers.ok(*add) == "policy t/edge created\n"
    assert tiers.ok(*add) == "policy t/edge unchanged\n"
    found = records.get(PolicyKey("t", "edge"))
    assert found is not None
    assert found.record == Policy(
        selector="role == 'edge'",
        order=3.0,
        types=("ingress", "egress"),
        inbound_rules=(Rule(protocol="tcp", dst_ports=(80, "http")), Rule(action="reject")),
        outbound_rules=(Rule(),),
        apply_on_forward=True,
    )
    early = ("--selector", "all()", "--pre-dnat", "--apply-on-forward", "--inbound", "deny", "--staged")
    assert tiers.ok("policy", "add", "default", "early", *early) == "policy default/early created\n"
    found = records.get(PolicyKey("default", "early"))
    assert found is not None
    assert (found.record.types, found.record.pre_dnat, found.record.staged) == (("ingress",), True, True)
    assert tiers.ok("policy", "add", "t", "edge", "--selector", "") == "policy t/edge updated\n"


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--untracked",), 2, "apply_on_forward"),
        (("--pre-dnat", "--untracked", "--apply-on-forward"), 2, "not both"),
        (("--pre-dnat", "--apply-on-forward", "--outbound", "allow"), 2, "only inbound"),
        (("--pre-dnat", "--apply-on-forward", "--types", "egress"), 2, "ingress only"),
        (("--types", "in"), 2, "--types"),
        (("--inbound", "allow tcp to port 80"), 2, "--inbound: expected ports LIST"),
        (("--inbound", "allow 'tcp"), 2, "--inbound"),
        (("--order", "first"), 2, "--order"),
        (("--selector", "a ="), 2, "--selector"),
    ],
)
def test_add_refuses(tiers: Calicoctl, options: tuple[str, ...], code: int, says: str) -> None:
    done = tiers("policy", "add", "t", "p", "--selector", "all()", *options)
    assert done.code == code
    assert says in done.err
    assert tiers("policy", "add", "nowhere", "p", "--selector", "all()").code == 4


def test_documents_are_held_to_the_same(tiers: Calicoctl) -> None:
    document = {"name": "p", "policy": {"selector": "", "untracked": True}}
    done = tiers("policy", "apply", "-f", "-", stdin=json.dumps(document))
    assert done.code == 2
    assert "policy.apply_on_forward" in done.err


@pytest.mark.parametrize("order", [".nan", ".inf", "-.inf"])
def test_a_document_has_an_order_to_sort_by(tiers: Calicoctl, order: str) -> None:
    done = tiers("policy", "apply", "-f", "-", stdin=f"name: p\npolicy: {{selector: all(), order: {order}}}")
    assert done.code == 2
    assert "policy.order: " in done.err

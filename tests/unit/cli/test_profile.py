"""``calicoctl profile``: create, remove, tags, rules."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from netaddr import IPNetwork

from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import PROFILES, ProfileRulesKey, ProfileTagsKey, WorkloadEndpointKey
from calico_core.model.rules import Rule, RuleLists

if TYPE_CHECKING:
    from calico_core.datastore.records import TypedRecords
    from tests.unit.cli.conftest import Calicoctl


def rules(records: TypedRecords, direction: str = "inbound") -> tuple[Rule, ...]:
    found: tuple[Rule, ...] = getattr(records.get(ProfileRulesKey("web")).record, f"{direction}_rules")
    return found


@pytest.fixture
def web(calicoctl: Calicoctl) -> Calicoctl:
    calicoctl.ok("profile", "add", "web")
    return calicoctl


def use(records: TypedRecords) -> WorkloadEndpointKey:
    key = WorkloadEndpointKey("rack-a", "cni", "pod", "endpoint-1")
    nets = (IPNetwork("10.65.0.2/32"),)
    records.put(key, WorkloadEndpoint(state="active", name="cali1", ipv4_nets=nets, profile_ids=("web",)))
    return key


def test_a_new_profile_trusts_its_own(calicoctl: Calicoctl, records: TypedRecords) -> None:
    before = records.store.list(PROFILES).revision
    assert calicoctl.ok("profile", "add", "web") == "Created profile web\n"
    assert records.get(ProfileTagsKey("web")).record == ("web",)
    assert records.get(ProfileRulesKey("web")).record == RuleLists(
        id="web", inbound_rules=(Rule(action="allow", src_tag="web"),), outbound_rules=(Rule(action="allow"),)
    )
    assert records.store.list(PROFILES).revision == before + 1  # one transaction


def test_adding_again_changes_nothing(web: Calicoctl, records: TypedRecords) -> None:
    web.ok("profile", "web", "tag", "add", "mine")
    assert web.ok("profile", "add", "web") == "Profile web already exists.\n"
    assert records.get(ProfileTagsKey("web")).record == ("web", "mine")


@pytest.mark.parametrize("name", ["a b", "a/b", "..", ""])
def test_a_bad_name_is_2(calicoctl: Calicoctl, records: TypedRecords, name: str) -> None:
    assert calicoctl("profile", "add", name).code == 2
    assert records.store.list(PROFILES).entries == ()


def test_remove(web: Calicoctl, records: TypedRecords) -> None:
    assert web.ok("profile", "remove", "web") == "Deleted profile web\n"
    assert records.store.list(PROFILES).entries == ()
    assert "does not exist" in web.ok("profile", "remove", "web")


@pytest.mark.parametrize("flag", ["--no-check", "--force"])
def test_removing_one_in_use_is_5_and_says_who(web: Calicoctl, records: TypedRecords, flag: str) -> None:
    use(records)
    done = web("profile", "remove", "web")
    assert done.code == 5
    assert "rack-a/endpoint-1" in done.err
    assert records.get(ProfileRulesKey("web")) is not None
    web.ok("profile", "remove", "web", flag)
    assert records.get(ProfileRulesKey("web")) is None


def test_show(web: Calicoctl, records: TypedRecords) -> None:
    web.ok("profile", "add", "db")
    use(records)
    assert web("profile", "show", "-o", "json").json == [
        {"profile": "db", "endpoints": []},
        {"profile": "web", "endpoints": ["rack-a/endpoint-1"]},
    ]
    assert "rack-a/endpoint-1" in web.ok("profile", "show", "--detailed")
    assert "rack-a" not in web.ok("profile", "show")


def test_tags(web: Calicoctl, records: TypedRecords) -> None:
    assert web.ok("profile", "web", "tag", "add", "front") == "Tag front added to profile web\n"
    assert web.ok("profile", "web", "tag", "add", "front") == "Tag front is on profile web\n"
    assert records.get(ProfileTagsKey("web")).record == ("web", "front")
    assert web("profile", "web", "tag", "show", "-o", "json").json == [{"tag": "web"}, {"tag": "front"}]
    assert web.ok("profile", "web", "tag", "remove", "web") == "Tag web removed from profile web\n"
    assert records.get(ProfileTagsKey("web")).record == ("front",)
    done = web("profile", "web", "tag", "remove", "web")
    assert done.code == 4
    assert "front" in done.err
    assert web("profile", "web", "tag", "add", "a b").code == 2


@pytest.mark.parametrize(
    "arguments",
    [("tag", "show"), ("tag", "add", "x"), ("rule", "show"), ("rule", "json"), ("rule", "add", "inbound", "allow")],
)
def test_a_profile_that_is_not_there_is_4(
    calicoctl: Calicoctl, records: TypedRecords, arguments: tuple[str, ...]
) -> None:
    done = calicoctl("profile", "nobody", *arguments)
    assert done.code == 4
    assert "'nobody'" in done.err
    assert records.store.list(PROFILES).entries == ()


@pytest.mark.parametrize("name", ["show", "add", "remove", "tag", "rule"])
def test_a_profile_may_be_called_like_a_verb(calicoctl: Calicoctl, records: TypedRecords, name: str) -> None:
    calicoctl.ok("profile", "add", name)
    calicoctl.ok("profile", name, "tag", "add", "extra")
    assert records.get(ProfileTagsKey(name)).record == (name, "extra")


def test_rules_are_added_where_asked(web: Calicoctl, records: TypedRecords) -> None:
    web.ok("profile", "web", "rule", "add", "inbound", "deny", "udp")
    web.ok("profile", "web", "rule", "add", "inbound", "--at=1", "allow", "tcp", "to", "ports", "80,443")
    web.ok("profile", "web", "rule", "add", "--at", "2", "inbound", "log")
    assert [rule.action for rule in rules(records)] == ["allow", "log", "allow", "deny"]
    assert rules(records)[0] == Rule(action="allow", protocol="tcp", dst_ports=(80, 443))
    shown = web.ok("profile", "web", "rule", "show")
    assert "   1 allow tcp to ports 80,443\n" in shown
    rows = web("profile", "web", "rule", "show", "-o", "json").json
    assert [(row["direction"], row["position"]) for row in rows] == [
        ("inbound", 1), ("inbound", 2), ("inbound", 3), ("inbound", 4), ("outbound", 1),
    ]  # fmt: skip


def test_a_rule_that_is_there_is_not_added_again(web: Calicoctl, records: TypedRecords) -> None:
    assert "already present" in web.ok("profile", "web", "rule", "add", "inbound", "allow", "from", "tag", "web")
    assert len(rules(records)) == 1


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("add", "inbound", "--at=3", "deny"), "1 to 2"),
        (("add", "inbound", "--at=0", "deny"), "1 to 2"),
        (("remove", "inbound", "--at=2"), "1 inbound"),
        (("remove", "inbound", "--at=0"), "1 inbound"),
        (("remove", "inbound"), "--at"),
        (("remove", "inbound", "--at=1", "allow"), "--at"),
        (("add", "inbound", "permit"), "permit"),
        (("add", "inbound", "allow", "tcp", "to", "port", "80"), "^"),
        (("add", "sideways", "allow"), "sideways"),
    ],
)
def test_bad_rules_are_2_and_change_nothing(
    web: Calicoctl, records: TypedRecords, arguments: tuple[str, ...], names: str
) -> None:
    before = records.get(ProfileRulesKey("web"))
    done = web("profile", "web", "rule", *arguments)
    assert done.code == 2, done
    assert names in done.err
    assert records.get(ProfileRulesKey("web")) == before


def test_rules_are_removed_by_position_or_words(web: Calicoctl, records: TypedRecords) -> None:
    web.ok("profile", "web", "rule", "add", "inbound", "deny", "udp")
    web.ok("profile", "web", "rule", "remove", "inbound", "--at=1")
    assert [rule.action for rule in rules(records)] == ["deny"]
    web.ok("profile", "web", "rule", "remove", "inbound", "deny", "udp")
    assert rules(records) == ()
    assert web("profile", "web", "rule", "remove", "inbound", "deny", "udp").code == 4


def test_json_and_update_are_each_others_reverse(web: Calicoctl, records: TypedRecords) -> None:
    web.ok("profile", "web", "rule", "add", "inbound", "deny", "tcp", "from", "cidr", "10.0.0.0/8")
    before = records.get(ProfileRulesKey("web")).record
    text = web.ok("profile", "web", "rule", "json")
    assert json.loads(text)["inbound_rules"][1]["src_net"] == "10.0.0.0/8"
    web.ok("profile", "web", "rule", "remove", "inbound", "--at=1")
    web.ok("profile", "web", "rule", "update", stdin=text)
    assert records.get(ProfileRulesKey("web")).record == before


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{", "rules"),
        ('{"inbound_rules": [{"action": "permit"}], "outbound_rules": []}', "inbound_rules[0]"),
        ('{"id": "other", "inbound_rules": [], "outbound_rules": []}', "'other'"),
        ('{"inbound_rule": [], "outbound_rules": []}', "inbound_rule: is no field; did you mean 'inbound_rules'?"),
        ('{"inbound_rules": []}', "outbound_rules: give both lists"),
        ("[]", "rules"),
    ],
)
def test_a_bad_update_is_2(web: Calicoctl, records: TypedRecords, text: str, names: str) -> None:
    before = records.get(ProfileRulesKey("web"))
    done = web("profile", "web", "rule", "update", stdin=text)
    assert done.code == 2
    assert names in done.err
    assert records.get(ProfileRulesKey("web")) == before

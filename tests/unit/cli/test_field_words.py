"""What is wrong with a value, and what would be right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.cli.conftest import Calicoctl


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("allow icmp type 300", "rule: icmp_type: "),
        ("allow ip 5", "rule: ip_version: 5 is not 4 or 6"),
    ],
)
def test_words_of_a_rule(calicoctl: Calicoctl, words: str, says: str) -> None:
    calicoctl.ok("profile", "add", "web")
    done = calicoctl("profile", "web", "rule", "add", "inbound", *words.split())
    assert (done.code, says in done.err) == (2, True), done


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ({"order": "first"}, "policy.order: 'first' is not default or a number"),
        (
            {"inbound_rules": [{}, {"action": "drop"}]},
            "policy.inbound_rules[1].action: 'drop' is not allow, deny, log, next-tier, pass or reject",
        ),
        (
            {"outbound_rules": [{"actoin": "deny"}]},
            "policy.outbound_rules[0].actoin: is no field; did you mean 'action'?",
        ),
        ({"outbound_rules": [{"zzz": 1}]}, "policy.outbound_rules[0].zzz: is no field"),
    ],
)
def test_fields_of_a_document(calicoctl: Calicoctl, policy: dict[str, Any], says: str) -> None:
    document = {"name": "p", "policy": {"selector": "all()", **policy}}
    done = calicoctl("policy", "apply", "-f", "-", stdin=json.dumps(document))
    assert (done.code, done.err.splitlines()) == (2, [f"calicoctl: {says}"])


def test_a_name_without_a_verb(calicoctl: Calicoctl) -> None:
    done = calicoctl("profile", "web")
    assert done.code == 2
    assert "'web' is no command. Known: add, counters, remove, show; after a name: tag, rule." in done.err


def test_a_tier_that_is_not_there(calicoctl: Calicoctl) -> None:
    assert calicoctl("policy", "show", "nope").code == 4
    assert calicoctl("policy", "show", "default").code == 0


def test_what_has_no_table_has_a_form_for_programs_too(calicoctl: Calicoctl) -> None:
    assert set(calicoctl("version", "-o", "json").json) == {"version"}
    done = calicoctl("status", "-o", "json")
    assert (done.code, done.json["is_running"]) == (1, False)

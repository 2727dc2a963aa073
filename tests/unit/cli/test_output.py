"""What anybody may have written in the datastore, on the terminal of who looks at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from calico_core.model.keys import GlobalConfigKey, PolicyKey, ProfileRulesKey
from calico_core.model.policies import Policy
from calico_core.model.rules import Rule, RuleLists

if TYPE_CHECKING:
    from calico_core.datastore.records import TypedRecords
    from tests.unit.cli.conftest import Calicoctl

EVIL, SHOWN = "\x1b[2Jgone\r\u202e\x9b31m", r"\x1b[2Jgone\r\u202e\x9b31m"


@pytest.mark.parametrize(
    "words",
    [
        ["profile", "p", "rule", "show"],
        ["policy", "show", "default", "p"],
        ["config", "show"],
        ["config", "remove", "LogPrefix"],
    ],
    ids=" ".join,
)
def test_a_terminal_gets_no_commands(calicoctl: Calicoctl, records: TypedRecords, words: list[str]) -> None:
    rule = Rule(action="log", log_prefix=EVIL)
    records.put(ProfileRulesKey("p"), RuleLists(inbound_rules=(rule,)))
    records.put(PolicyKey("default", "p"), Policy(selector="all()", inbound_rules=(rule,)))
    records.put(GlobalConfigKey("LogPrefix"), EVIL)
    done = calicoctl(*words)
    assert SHOWN in done.out + done.err
    assert not {*done.out, *done.err} & {*EVIL} - {*SHOWN}


def test_a_table_has_the_rows_that_there_are(calicoctl: Calicoctl, records: TypedRecords) -> None:
    records.put(GlobalConfigKey("LogPrefix"), "calico\n| forged")
    out = calicoctl.ok("config", "show")
    assert r"calico\n| forged" in out
    assert not any(line.startswith("| forged") or line.lstrip("| ").startswith("forged") for line in out.splitlines())

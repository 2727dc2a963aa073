"""Which driver a host gets."""

from __future__ import annotations

import pytest

from calico_core.errors import InvalidSettings
from calico_core.node.composition import choose_dataplane, dataplane_lack, dataplane_name
from calico_core.settings import load_settings


@pytest.mark.parametrize(
    ("wanted", "lacks", "chosen"),
    [
        ("auto", {}, "nftables"),
        ("auto", {"nftables": "module nf_tables"}, "iptables"),
        ("iptables", {"nftables": "module nf_tables"}, "iptables"),
        ("nftables", {"iptables": "no program"}, "nftables"),
        ("other", {}, "other"),
    ],
)
def test_the_first_that_the_host_can_have(wanted: str, lacks: dict[str, str], chosen: str) -> None:
    assert choose_dataplane(wanted, "default", lambda name: lacks.get(name, "")) == chosen


@pytest.mark.parametrize(("wanted", "named"), [("auto", {"nf_tables", "ip_set"}), ("nftables", {"nf_tables"})])
def test_what_is_missing_is_named(wanted: str, named: set[str]) -> None:
    lacks = {"nftables": "the kernel has no module nf_tables", "iptables": "module ip_set"}
    with pytest.raises(InvalidSettings) as caught:
        choose_dataplane(wanted, "environment X", lambda name: lacks[name])
    assert caught.value.name == "dataplane_driver"
    assert all(each in str(caught.value) for each in named)


@pytest.mark.parametrize(
    ("environment", "name"),
    [({"CALICO_DATAPLANE_DRIVER": "memory"}, "memory"), ({"CALICO_DATAPLANE_DRIVER": "Auto"}, None)],
)
def test_from_settings(environment: dict[str, str], name: str | None) -> None:
    found = dataplane_name(load_settings(environment))
    assert found == name if name else found in {"nftables", "iptables"}


@pytest.mark.parametrize(("word", "name"), [("Enabled", "nftables"), ("disabled", "iptables"), ("AUTO", "auto")])
def test_the_reference_agents_words(word: str, name: str) -> None:
    assert load_settings({"FELIX_NFTABLESMODE": word}).dataplane_driver == name
    assert load_settings({}, file={"nftablesmode": word}).dataplane_driver == name
    assert load_settings({}, global_config={"NFTablesMode": word}).dataplane_driver == "auto"


@pytest.mark.parametrize("name", ["nftables", "memory", "other"])
def test_only_a_second_choice_has_a_reason(name: str) -> None:
    assert dataplane_lack(name) == ""

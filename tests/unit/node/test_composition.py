"""Which driver a host gets, and what a start leaves on the disk for later ones."""

from __future__ import annotations

import contextlib
import logging
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calico_core.errors import InvalidSettings, PluginMissing
from calico_core.node.composition import (
    choose_dataplane,
    dataplane_lack,
    dataplane_name,
    load_saved_settings,
    node_name,
    save_settings,
)
from calico_core.node.startup import remember_name
from calico_core.settings import Settings, load_settings


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
    assert load_settings({}, global_config={"NFTablesMode": word}).dataplane_driver == name
    ours = {"CALICO_DATAPLANE_DRIVER": "memory"}
    assert load_settings(ours, host_config={"NFTablesMode": word}).dataplane_driver == "memory"


class Driver:
    """As the one that is called so, on a host whose kernel has no nftables."""

    def __init__(self, name: str) -> None:
        self._name = name

    def missing(self) -> str:
        return "no module nf_tables" if self._name == "nftables" else ""


def load_or_refuse(namespace: str, name: str) -> Any:
    if name not in ("nftables", "iptables"):
        raise PluginMissing(namespace, name)
    return Driver(name)


@pytest.mark.parametrize("word", ["Enabled", "nftable"])
def test_a_stored_driver_that_a_host_cannot_have_keeps_it_from_nothing(
    word: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All hosts read it. What is said to this one alone ends its start."""
    assert dataplane_name(load_settings({}, global_config={"NFTablesMode": word}), load_or_refuse) == "iptables"
    assert "settings.stored_value_ignored" in caplog.messages
    with pytest.raises((InvalidSettings, PluginMissing)):
        dataplane_name(load_settings({"FELIX_NFTABLESMODE": word}), load_or_refuse)
    caplog.clear()
    assert dataplane_name(load_settings({}, global_config={"NFTablesMode": "Disabled"}), load_or_refuse) == "iptables"
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["nftables", "memory", "other"])
def test_only_a_second_choice_has_a_reason(name: str) -> None:
    assert dataplane_lack(name) == ""


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow: as it is where nothing is left, and for root too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_name_of_a_host_is_remembered(tmp_path: Path) -> None:
    settings = Settings(state_directory=str(tmp_path / "state"))
    for name in ("rack-a", "rack-b"):
        remember_name(settings, name)
        assert node_name(settings) == name
    file = tmp_path / "state" / "nodename"
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("rack-b\n", 0o644)
    written = file.stat().st_ino
    remember_name(settings, "rack-b")
    assert file.stat().st_ino == written, "it said so before"


@pytest.mark.parametrize("host", ["rack-a", "rack-b"])
def test_a_full_disk_keeps_no_node_from_starting_and_loses_no_name(
    tmp_path: Path, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(state_directory=str(tmp_path))
    remember_name(settings, "rack-a")
    with full_disk(), caplog.at_level(logging.WARNING):
        remember_name(settings, host)
    assert node_name(settings) == "rack-a"
    assert [each.name for each in tmp_path.iterdir()] == ["nodename"]
    assert [record.message for record in caplog.records] == ["node.name_not_remembered"] * (host != "rack-a")


def test_settings_that_cannot_be_saved_are_a_named_error(tmp_path: Path) -> None:
    settings = Settings(run_directory=str(tmp_path))
    save_settings(settings, "rack-a")
    with full_disk(), pytest.raises(InvalidSettings, match=r"run_directory .*settings\.json cannot be written: "):
        save_settings(settings, "rack-b")
    assert load_saved_settings(str(tmp_path)).node_name == "rack-a"
    assert [each.name for each in tmp_path.iterdir()] == ["settings.json"]

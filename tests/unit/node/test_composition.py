"""Which driver a host gets, and what a start leaves on the disk for later ones."""

from __future__ import annotations

import contextlib
import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from calico_core.errors import InvalidSettings
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
    assert load_settings({}, global_config={"NFTablesMode": word}).dataplane_driver == "auto"


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

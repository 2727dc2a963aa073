"""What a node notes of its classes for a process that answers one call."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from calico_cni.integration import CniIntegration
from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.errors import PluginMissing
from calico_core.node.composition import load_shortcuts, save_shortcuts
from calico_core.plugin_host.loader import load_all
from calico_core.plugin_host.namespaces import DATASTORES, INTEGRATIONS
from calico_core.plugin_host.shortcuts import Shortcuts, decode_shortcuts, last_installed, take_shortcuts
from calico_core.settings import Settings


@pytest.fixture
def noted() -> Shortcuts:
    return take_shortcuts({DATASTORES: {"sqlite": SqliteDatastore}}, load_all(INTEGRATIONS).loaded)


def test_what_is_noted_is_found(noted: Shortcuts) -> None:
    found = decode_shortcuts(msgspec.json.encode(noted))
    assert found == noted
    assert found.driver(DATASTORES, "sqlite") is SqliteDatastore
    for program in CniIntegration.info.programs:
        plugin = found.integration(program)
        assert plugin is not None
        assert (plugin.name, plugin.target) == ("cni", CniIntegration)
        assert plugin.distribution == "calico-containers"


def test_what_is_not_noted_is_looked_up(noted: Shortcuts) -> None:
    assert noted.driver(DATASTORES, "memory") is MemoryDatastore
    assert noted.integration("docker") is None
    with pytest.raises(PluginMissing):
        noted.driver(DATASTORES, "redis")


@pytest.mark.parametrize("place", ["calico_core.gone:Class", "calico_core.errors:Gone", "", "calico_core.errors"])
def test_a_class_that_is_gone_is_looked_up(place: str) -> None:
    noted = Shortcuts(drivers={DATASTORES: {"memory": place}}, integrations={"calico": ("cni", place)})
    assert noted.driver(DATASTORES, "memory") is MemoryDatastore
    assert noted.integration("calico") is None


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"drivers": 1}', b"{}"])
def test_notes_that_are_not_ours_say_nothing(text: bytes) -> None:
    assert decode_shortcuts(text) == Shortcuts()


def test_notes_from_before_an_installation_say_nothing(
    noted: Shortcuts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder), str(tmp_path / "away" / "dist-packages")])
    text = msgspec.json.encode(msgspec.structs.replace(noted, installed=last_installed()))
    assert decode_shortcuts(text).drivers
    (folder / "acme-1.dist-info").mkdir()
    os.utime(folder, ns=(0, folder.stat().st_mtime_ns + 1))
    assert decode_shortcuts(text) == Shortcuts()


def test_a_node_leaves_them_beside_its_settings(tmp_path: Path) -> None:
    settings = Settings(datastore="sqlite:///x", run_directory=str(tmp_path / "run"))
    assert load_shortcuts(settings.run_directory) == Shortcuts()
    save_shortcuts(settings, "memory", load_all(INTEGRATIONS).loaded)
    found = load_shortcuts(settings.run_directory)
    assert found.drivers.keys() == {"calico.datastores", "calico.ipam", "calico.dataplanes"}
    assert found.integrations["calico"] == ("cni", "calico_cni.integration:CniIntegration")
    assert (tmp_path / "run" / "shortcuts.json").stat().st_mode & 0o777 == 0o600

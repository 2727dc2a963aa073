"""Drivers by name; integrations all together, the broken ones apart, each with whose it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from calico_core.datastore.memory import MemoryDatastore
from calico_core.errors import PluginMissing
from calico_core.plugin_host import loader, namespaces

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


def test_driver_by_name() -> None:
    assert loader.load_driver(namespaces.DATASTORES, "memory") is MemoryDatastore


def test_missing_driver_names_what_is_there() -> None:
    with pytest.raises(PluginMissing) as caught:
        loader.load_driver(namespaces.DATASTORES, "redis")
    assert {"etcd3", "memory", "sqlite"} <= set(caught.value.available)
    assert "redis" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "driver"),
    [("sqlite:///a", "sqlite"), ("etcd3://h:1", "etcd3"), ("etcd3s://h:1", "etcd3"), ("memory://x", "memory")],
)
def test_driver_of_url(url: str, driver: str) -> None:
    assert loader.driver_of_url(url) == driver


def test_url_without_scheme_is_refused() -> None:
    with pytest.raises(PluginMissing, match="etcd3"):
        loader.driver_of_url("/var/lib/calico.db")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both out-of-tree packages, installed in a folder of their own."""
    target = tmp_path_factory.mktemp("strangers")
    for name in ("thirdparty", "thirdparty_broken"):
        _install(FIXTURES / name, target)
    return target


def _install(project: Path, target: Path) -> None:
    """As pip's ``--target`` does for a pure package, without a network: files and metadata."""
    import shutil
    import tomllib

    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    for package in project.iterdir():
        if (package / "__init__.py").exists():
            shutil.copytree(package, target / package.name)
    info = target / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    sections = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in about["entry-points"].items()
    )
    (info / "entry_points.txt").write_text(sections)


def test_broken_strangers_do_not_stop_the_rest(strangers: Path) -> None:
    script = (
        "import json; from calico_core.plugin_host import loader, namespaces;"
        "found = loader.load_all(namespaces.INTEGRATIONS);"
        "print(json.dumps({'loaded': {p.name: [p.distribution, p.version] for p in found.loaded},"
        "'broken': {p.name: p._asdict() for p in found.broken}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(strangers), "PATH": "", "HOME": str(strangers)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["loaded"]["acme"] == ["calico-acme", "1.2.3"]
    assert {"cni", "libnetwork", "mesos"} <= found["loaded"].keys()
    broken = found["broken"]["broken"]
    assert (broken["distribution"], broken["version"]) == ("calico-broken", "0.0.7")
    assert "on purpose" in broken["error"]
    assert "missing.py" in broken["details"]
    assert "API version 0" in found["broken"]["outdated"]["error"]

"""Which datastore is asked: flag, environment, what the node here uses, the default file if it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from netaddr import IPNetwork

from calico_core.datastore.records import TypedRecords
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.interfaces.datastore import DatastoreOptions
from calico_core.model.keys import PoolKey
from calico_core.model.pools import Pool
from calico_core.node.composition import save_settings
from calico_core.settings import Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.cli.conftest import Calicoctl


@pytest.fixture
def urls(tmp_path: Path) -> dict[str, str]:
    """A store for each way to name one, with a pool of its own."""
    found = {}
    for number, name in enumerate(("flag", "environment", "saved", "default")):
        url = f"sqlite://{tmp_path}/{name}.db"
        store = SqliteDatastore.open(url, DatastoreOptions())
        cidr = IPNetwork(f"10.{number}.0.0/16")
        TypedRecords(store).put(PoolKey(cidr), Pool(cidr=cidr))
        store.close()
        found[name] = url
    return found


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        (("flag", "environment", "saved", "default"), "10.0.0.0/16"),
        (("environment", "saved", "default"), "10.1.0.0/16"),
        (("saved", "default"), "10.2.0.0/16"),
        (("default",), "10.3.0.0/16"),
    ],
)
def test_the_first_way_wins(
    bare: Calicoctl,
    environment: pytest.MonkeyPatch,
    tmp_path: Path,
    urls: dict[str, str],
    ways: tuple[str, ...],
    expected: str,
) -> None:
    flags = ["--datastore", urls["flag"]] if "flag" in ways else []
    if "environment" in ways:
        environment.setenv("CALICO_DATASTORE", urls["environment"])
    if "saved" in ways:
        save_settings(Settings(datastore=urls["saved"], run_directory=str(tmp_path / "run")), "rack-a")
    _default_to(environment, urls["default"])
    (row,) = bare(*flags, "pool", "show", "-o", "json").json
    assert row["cidr"] == expected


def test_without_any_it_is_3_and_says_what_to_do(
    bare: Calicoctl, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _default_to(environment, f"sqlite://{tmp_path}/absent.db")
    done = bare("pool", "show")
    assert done.code == 3
    assert "--datastore" in done.err
    assert "CALICO_DATASTORE" in done.err
    assert list(tmp_path.iterdir()) == []


def test_reading_a_named_file_does_not_make_it(bare: Calicoctl, tmp_path: Path) -> None:
    done = bare("--datastore", f"sqlite://{tmp_path}/absent.db", "pool", "show")
    assert done.code == 3
    assert "absent.db" in done.err
    assert list(tmp_path.iterdir()) == []


def test_saved_settings_of_somebody_else_are_refused(bare: Calicoctl, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_bytes(b'{"datastore": 3}')
    done = bare("pool", "show")
    assert done.code == 2
    assert "settings.json" in done.err


def test_saved_settings_keep_everything_and_are_for_root_alone(tmp_path: Path) -> None:
    settings = Settings(run_directory=str(tmp_path / "run"), etcd_password="hunter2", integrations=("cni",))
    save_settings(settings, "rack-a")
    from calico_core.node.composition import load_saved_settings

    path = tmp_path / "run" / "settings.json"
    assert load_saved_settings(str(tmp_path / "run")) == msgspec.structs.replace(settings, node_name="rack-a")
    assert path.stat().st_mode & 0o777 == 0o600
    save_settings(settings, "rack-b")
    assert load_saved_settings(str(tmp_path / "run")).node_name == "rack-b"
    assert [entry.name for entry in path.parent.iterdir()] == ["settings.json"]


def _default_to(environment: pytest.MonkeyPatch, url: str) -> None:
    """The embedded default lies in a place of the machine's; tests have theirs."""

    def load(*arguments: Any, **options: Any) -> Settings:
        loaded = load_settings(*arguments, **options)
        return loaded if "datastore" in loaded.origins else msgspec.structs.replace(loaded, datastore=url)

    environment.setattr("calico_core.settings_file.load_settings", load)


def test_adding_makes_a_named_file(bare: Calicoctl, tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/new.db"
    assert bare("--datastore", url, "pool", "add", "10.65.0.0/16").code == 0
    assert "10.65.0.0/16" in bare.ok("--datastore", url, "pool", "show")

"""``calicoctl config``: values with their origins, and the datastore's part of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from calico_core.model.keys import GlobalConfigKey, HostConfigKey
from calico_core.node.composition import save_settings
from calico_core.node.stored_config import StoredConfig, with_stored_config
from calico_core.setting_fields import BY_CONFIG, FIELDS
from calico_core.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from calico_core.datastore.records import TypedRecords
    from tests.unit.cli.conftest import Calicoctl


def row(calicoctl: Calicoctl, setting: str, *more: str) -> dict[str, Any]:
    found = calicoctl("config", "show", "-o", "json", *more).json
    return next(each for each in found if each["setting"] == setting)


def test_origins(calicoctl: Calicoctl, environment: pytest.MonkeyPatch) -> None:
    assert len(calicoctl("config", "show", "-o", "json").json) == len(FIELDS)
    assert row(calicoctl, "node_name")["origin"] == "environment NODENAME"
    assert (row(calicoctl, "health_port")["value"], row(calicoctl, "health_port")["origin"]) == (9099, "default")
    assert calicoctl.ok("config", "set", "HealthPort", "9100") == "HealthPort of all hosts set to 9100\n"
    assert calicoctl.ok("config", "set", "HealthPort", "9101", "--host", "rack-a").endswith("set to 9101\n")
    found = row(calicoctl, "health_port")
    assert (found["value"], found["origin"]) == (9101, "datastore host HealthPort")
    assert row(calicoctl, "health_port", "--host", "rack-b")["origin"] == "datastore global HealthPort"
    environment.setenv("FELIX_HEALTHPORT", "9102")
    assert (row(calicoctl, "health_port")["value"]) == 9102
    assert row(calicoctl, "health_port", "--host", "rack-b")["value"] == 9100


def test_set_and_remove(calicoctl: Calicoctl, records: TypedRecords) -> None:
    done = calicoctl("config", "set", "LogSeverityScreen", "Warn")
    assert (done.code, "at once" in done.err) == (0, True)
    assert "started again" in calicoctl("config", "set", "InterfacePrefix", "tap").err
    changes = {name: row(calicoctl, name)["change"] for name in ("log_level", "interface_prefix", "datastore")}
    assert changes == {"log_level": "at once", "interface_prefix": "restart", "datastore": "by hand"}
    found = records.get(GlobalConfigKey("LogSeverityScreen"))
    assert found is not None
    assert found.record == "Warn"
    assert row(calicoctl, "log_level")["value"] == "warning"
    assert "unchanged" in calicoctl.ok("config", "set", "LogSeverityScreen", "Warn")
    assert "(was Warn)" in calicoctl.ok("config", "set", "LogSeverityScreen", "debug")
    assert "removed (was debug)" in calicoctl.ok("config", "remove", "LogSeverityScreen")
    assert "unchanged" in calicoctl.ok("config", "remove", "LogSeverityScreen")
    assert row(calicoctl, "log_level")["origin"] == "default"


def test_bad_names_and_values(calicoctl: Calicoctl, records: TypedRecords) -> None:
    for arguments, says in (
        (("set", "LogSeverityScren", "info"), "did you mean LogSeverityScreen"),
        (("set", "healthport", "1"), "did you mean HealthPort"),
        (("remove", "Zzzzzz"), "known: "),
        (("set", "HealthPort", "99999"), "HealthPort: 99999 is not between"),
        (("set", "MaxIpsetSize", "0"), "MaxIpsetSize: 0 is not between 1 and 1073741824"),
        (("set", "HealthEnabled", "maybe"), "true or false"),
        (("set", "HealthHost", " "), "config remove"),
        (("set", "HealthPort", "1", "--host", "a b"), "--host"),
    ):
        done = calicoctl("config", *arguments)
        assert (done.code, says in done.err) == (2, True), (arguments, done.err)
    assert not records.store.list("/calico/").entries


def test_a_stored_value_that_cannot_be_used_is_named(calicoctl: Calicoctl, records: TypedRecords) -> None:
    records.put(HostConfigKey("rack-a", "HealthPort"), "high")
    done = calicoctl("config", "show")
    said = "health_port: datastore host HealthPort: 'high' is not a number; it counts as not there"
    assert said in done.err
    assert row(calicoctl, "health_port")["value"] == 9099


@pytest.mark.parametrize(
    ("name", "host", "of_all", "instead"),
    [
        ("DefaultEndpointToHostAction", "DRPO", "DROP", "it counts as not there"),
        ("HealthPort", "high", "higher", "it counts as not there"),
        ("DropActionOverride", "DRPO", "ACCEPT", "the default counts"),
        ("HealthPort", "9101", "high", ""),
    ],
)
def test_in_place_of_a_value_that_cannot_be_used_stands_what_a_node_takes(
    calicoctl: Calicoctl, records: TypedRecords, name: str, host: str, of_all: str, instead: str
) -> None:
    records.put(HostConfigKey("rack-a", name), host)
    records.put(GlobalConfigKey(name), of_all)
    field = BY_CONFIG[name]
    node = with_stored_config(
        Settings(), {"CALICO_CONFIG_FILE": "/nowhere"}, StoredConfig({name: host}, {name: of_all})
    )
    shown = row(calicoctl, field.name)
    assert shown["value"] == getattr(node, field.name)
    assert shown["origin"] == node.origins.get(field.name, "default")
    assert instead in calicoctl("config", "show").err
    if not instead:
        assert shown["invalid"] is None
        assert [each["value"] for each in shown["shadowed"]] == [of_all]


def test_a_prefix_of_interfaces_that_cannot_be_is_said_to_end_the_start(
    calicoctl: Calicoctl, records: TypedRecords
) -> None:
    records.put(GlobalConfigKey("InterfacePrefix"), "tap/")
    assert "no node starts with it" in calicoctl("config", "show").err


def test_what_the_node_runs_with(calicoctl: Calicoctl, tmp_path: Path) -> None:
    origins = {"ip": "environment IP", "etcd_password": "environment ETCD_PASSWORD"}
    saved = Settings(run_directory=str(tmp_path / "run"), ip="192.0.2.7", etcd_password="secret", origins=origins)
    save_settings(saved, "rack-a")
    calicoctl.ok("config", "set", "InterfacePrefix", "tap")
    done = calicoctl("config", "show")
    assert "interface_prefix: the node runs with cali until it is started again" in done.err
    assert "secret" not in done.out
    assert (row(calicoctl, "ip")["value"], row(calicoctl, "ip")["origin"]) == ("192.0.2.7", "environment IP")
    assert row(calicoctl, "etcd_password")["value"] == "(set)"
    assert row(calicoctl, "interface_prefix")["running"] == "cali"


def test_values_that_others_come_before_are_shown(
    calicoctl: Calicoctl, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "felix.cfg"
    file.write_text("[x]\nhealthport = 9103\n")
    environment.setenv("CALICO_CONFIG_FILE", str(file))
    calicoctl.ok("config", "set", "HealthPort", "9100")
    calicoctl.ok("config", "set", "HealthPort", "9101", "--host", "rack-a")
    stored = [
        {"origin": "datastore host HealthPort", "value": "9101"},
        {"origin": "datastore global HealthPort", "value": "9100"},
    ]
    found = row(calicoctl, "health_port")
    assert (found["value"], found["origin"], found["shadowed"]) == (9103, "file healthport", stored)
    environment.setenv("FELIX_HEALTHPORT", "9102")
    found = row(calicoctl, "health_port")
    assert found["shadowed"] == [{"origin": "file healthport", "value": "9103"}, *stored]
    assert "health_port: comes before 9103 (file healthport)" in calicoctl("config", "show").err
    assert row(calicoctl, "health_port", "--host", "rack-b")["shadowed"] == []


def test_a_name_without_effect_says_why(calicoctl: Calicoctl) -> None:
    for name, reason in (
        ("IpInIpEnabled", "a pool says itself"),
        ("EtcdAddr", "from environment and file alone"),
    ):
        done = calicoctl("config", "set", name, "true")
        assert (done.code, reason in done.err) == (2, True)

"""The datastore's part of the settings: beneath environment and file, and what is said about names in it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.errors import InvalidSettings
from calico_core.model.keys import GlobalConfigKey, HostConfigKey
from calico_core.node.stored_config import StoredConfig, read_stored_config, tell_settings, with_stored_config
from calico_core.setting_fields import FIELDS
from calico_core.settings_file import load_local_settings


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    return {"CALICO_CONFIG_FILE": str(tmp_path / "felix.cfg")}


def stored_by(records: dict[GlobalConfigKey | HostConfigKey, str]) -> StoredConfig:
    store = TypedRecords(MemoryDatastore())
    for key, text in records.items():
        store.put(key, text)
    return read_stored_config(store, "h1")


def test_it_lies_beneath_environment_and_file(nowhere: dict[str, str]) -> None:
    Path(nowhere["CALICO_CONFIG_FILE"]).write_text("[global]\nMetadataAddr = 192.0.2.1\n")
    stored = stored_by(
        {
            GlobalConfigKey("InterfacePrefix"): "cali",
            GlobalConfigKey("DefaultEndpointToHostAction"): "DROP",
            GlobalConfigKey("MetadataAddr"): "192.0.2.9",
            HostConfigKey("h1", "DefaultEndpointToHostAction"): "ACCEPT",
            HostConfigKey("h2", "InterfacePrefix"): "tap",
        }
    )
    environment = {**nowhere, "FELIX_INTERFACEPREFIX": "vif"}
    settings = with_stored_config(load_local_settings(environment), environment, stored)
    assert (settings.interface_prefix, settings.endpoint_to_host) == ("vif", "ACCEPT")
    assert settings.metadata_address == "192.0.2.1"
    assert settings.origins["endpoint_to_host"] == "datastore host DefaultEndpointToHostAction"
    assert settings.origins["interface_prefix"] == "environment FELIX_INTERFACEPREFIX"
    assert settings.origins["metadata_address"] == "file metadataaddr"
    assert settings.shadowed["metadata_address"] == (("datastore global MetadataAddr", "192.0.2.9"),)
    assert settings.shadowed["endpoint_to_host"] == (("datastore global DefaultEndpointToHostAction", "DROP"),)


def test_an_unusable_value_is_left_out_and_the_others_hold(
    nowhere: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    stored = stored_by(
        {
            GlobalConfigKey("InterfacePrefix"): "tap",
            GlobalConfigKey("DefaultEndpointToHostAction"): "PERHAPS",
            GlobalConfigKey("LogSeverityScreen"): "warning",
            HostConfigKey("h1", "LogSeverityScreen"): "loud",
            HostConfigKey("h1", "MetadataPort"): "65536",
        }
    )
    settings = with_stored_config(load_local_settings(nowhere), nowhere, stored)
    assert (settings.interface_prefix, settings.endpoint_to_host) == (
        "tap",
        load_local_settings(nowhere).endpoint_to_host,
    )
    assert (settings.log_level, settings.metadata_port) == ("warning", 8775)
    said = " ".join(str(each.calico_fields) for each in caplog.records)  # type: ignore[attr-defined]
    for origin in (
        "datastore global DefaultEndpointToHostAction",
        "datastore host LogSeverityScreen",
        "datastore host MetadataPort",
    ):
        assert origin in said


def test_a_prefix_of_interfaces_that_cannot_be_ends_the_start(nowhere: dict[str, str]) -> None:
    """Under the default name the workloads of the right one would be without policy."""
    stored = stored_by({GlobalConfigKey("InterfacePrefix"): "tap/"})
    with pytest.raises(InvalidSettings, match=r"interface_prefix \(from datastore global InterfacePrefix\)"):
        with_stored_config(load_local_settings(nowhere), nowhere, stored)
    environment = {**nowhere, "FELIX_INTERFACEPREFIX": "tap"}
    assert with_stored_config(load_local_settings(environment), environment, stored).interface_prefix == "tap"


def test_one_with_a_fallback_leaves_the_others_in_force(nowhere: dict[str, str]) -> None:
    stored = stored_by(
        {GlobalConfigKey("DropActionOverride"): "PERHAPS", GlobalConfigKey("IptablesFilterDenyAction"): "REJECT"}
    )
    settings = with_stored_config(load_local_settings(nowhere), nowhere, stored)
    assert (settings.drop_override, settings.deny_action) == ("DROP", "REJECT")
    (note,) = settings.notes
    assert "DropActionOverride" in note
    assert "the default counts" in note


def test_every_value_is_told_with_its_origin(nowhere: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    environment = {**nowhere, "FELIX_HEALTHPORT": "9100", "ETCD_PASSWORD": "hunter2"}
    with caplog.at_level(logging.DEBUG, logger="calico_core"):
        tell_settings(load_local_settings(environment), environment, StoredConfig({}, {}))
    said = {
        each.calico_fields["setting"]: (each.levelname, each.calico_fields["value"], each.calico_fields["origin"])  # type: ignore[attr-defined]
        for each in caplog.records
        if each.getMessage() == "settings.value"
    }
    assert said.keys() == {field.name for field in FIELDS}
    assert said["health_port"] == ("INFO", 9100, "environment FELIX_HEALTHPORT")
    assert said["metadata_port"] == ("DEBUG", 8775, "default")
    assert said["etcd_password"] == ("INFO", "(set)", "environment ETCD_PASSWORD")


def test_unknown_names_are_named_with_what_they_may_mean(
    nowhere: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    Path(nowhere["CALICO_CONFIG_FILE"]).write_text("interfaceprefx=x\nLOGSEVERITYFILE=info\n")
    stored = StoredConfig({"logseverityscreen": "info", "marker": "created"}, {"Zzz": "1", "ClusterGUID": "x"})
    environment = {**nowhere, "FELIX_HEALTHPROT": "1", "FELIX_HEALTHPORT": "9099"}
    with caplog.at_level(logging.WARNING, logger="calico_core"):
        tell_settings(load_local_settings(environment), environment, stored)
    said = {
        each.calico_fields["name"]: each.calico_fields["did_you_mean"]  # type: ignore[attr-defined]
        for each in caplog.records
        if each.getMessage() == "settings.unknown_name"
    }
    assert said.keys() == {"interfaceprefx", "logseverityscreen", "Zzz", "FELIX_HEALTHPROT"}
    assert said["interfaceprefx"] == "InterfacePrefix" or said["interfaceprefx"] == "interface_prefix"
    assert said["logseverityscreen"] == "LogSeverityScreen"
    assert said["Zzz"] is None


def test_known_names_that_change_nothing_are_warned_of_with_the_reason(
    nowhere: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    Path(nowhere["CALICO_CONFIG_FILE"]).write_text("IptablesGeneratorPlugin = other\nRequireMTUFile = false\n")
    stored = StoredConfig(
        {"marker": "created", "PeriodicResyncInterval": "60"},
        {"IpInIpEnabled": "false", "ClusterGUID": "x", "EtcdAddr": "h:1"},
    )
    environment = {**nowhere, "FELIX_STARTUPCLEANUPDELAY": "5"}
    tell_settings(load_local_settings(environment), environment, stored)
    said = {
        each.calico_fields["name"]: each.calico_fields["where"]  # type: ignore[attr-defined]
        for each in caplog.records
        if each.getMessage() == "settings.no_effect" and each.levelno == logging.WARNING
    }
    assert said == {
        "StartupCleanupDelay": "environment",
        "IptablesGeneratorPlugin": f"file {nowhere['CALICO_CONFIG_FILE']}",
        "PeriodicResyncInterval": "datastore host",
        "ClusterGUID": "datastore global",
        "EtcdAddr": "datastore global",
    }

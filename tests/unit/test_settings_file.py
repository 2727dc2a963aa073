"""The settings file: INI whose sections and letter case do not count."""

from __future__ import annotations

from pathlib import Path

import pytest

from calico_core.errors import InvalidSettings
from calico_core.settings_file import load_local_settings, read_settings_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "felix.cfg"


def test_sections_comments_and_case(path: Path) -> None:
    path.write_text(
        "MetadataPort = 1\n[DEFAULT]\n; old\n# older\n\nmetadataport: 8775\n[x]\n"
        "FAILSAFEINBOUNDHOSTPORTS = tcp:22,udp:[fd00::/8]:53\nEtcdAddr=10.0.0.1:2379\netcdscheme = https\n"
        "FelixHostname = rack-a\nEtcdCertFile=none\nLogPrefix=a=b\n"
    )
    settings = load_local_settings({"CALICO_CONFIG_FILE": str(path)})
    assert settings.metadata_port == 8775
    assert settings.failsafe_inbound == "tcp:22,udp:[fd00::/8]:53"
    assert (settings.datastore, settings.origins["datastore"]) == ("etcd3s://10.0.0.1:2379", "file etcdaddr")
    assert (settings.node_name, settings.etcd_cert_file, settings.log_prefix) == ("rack-a", "", "a=b")


def test_the_environment_comes_before_it(path: Path) -> None:
    path.write_text("IptablesMarkMask=0xff\n")
    settings = load_local_settings({"CALICO_CONFIG_FILE": str(path), "FELIX_IPTABLESMARKMASK": "0xff00"})
    assert settings.mark_mask == 0xFF00
    assert settings.shadowed == {"mark_mask": (("file iptablesmarkmask", "0xff"),)}


def test_a_missing_file_says_nothing(path: Path) -> None:
    assert read_settings_file(str(path)) == {}
    assert load_local_settings({"CALICO_CONFIG_FILE": str(path)}).origins == {}


@pytest.mark.parametrize(("text", "says"), [("a = 1\nwhat is this\n", "line 2"), (b"\xff\xfe=1", "cannot be read")])
def test_a_file_that_cannot_be_read_is_named(path: Path, text: str | bytes, says: str) -> None:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InvalidSettings, match=says) as caught:
        load_local_settings({"CALICO_CONFIG_FILE": str(path)})
    assert str(path) in str(caught.value)

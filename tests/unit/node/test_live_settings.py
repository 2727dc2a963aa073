"""The log follows the datastore while nothing nearer says otherwise; other settings ask for a start."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from calico_core import log
from calico_core.model.keys import GlobalConfigKey, HostConfigKey
from calico_core.node.live_settings import LiveSettings
from calico_core.node.log_targets import LogTargets
from calico_core.node.stored_config import StoredConfig
from calico_core.settings import load_settings

GLOBAL, OWN = GlobalConfigKey("LogSeverityScreen"), HostConfigKey("rack-a", "LogSeverityScreen")


def level() -> str:
    return logging.getLevelName(logging.getLogger("calico_core").level).lower()


def begun(**environment: str) -> LiveSettings:
    live = LiveSettings(load_settings(environment), "rack-a", follow=LogTargets().follow)
    live.begin()
    return live


def test_host_before_global_before_default() -> None:
    live = begun()
    assert level() == "info"
    live.take(GLOBAL, "DEBUG")
    assert level() == "debug"
    live.take(OWN, "err")
    assert level() == "error"
    live.take(HostConfigKey("rack-b", "LogSeverityScreen"), "debug")
    live.take(GlobalConfigKey("LogSeverityFile"), "debug")
    assert level() == "error"  # there is no file
    live.take(OWN, None)
    assert level() == "debug"
    live.take(GLOBAL, "none")
    assert not logging.getLogger("calico_core").isEnabledFor(logging.CRITICAL)
    live.take(GLOBAL, None)
    assert level() == "info"


def test_the_environment_wins() -> None:
    live = begun(FELIX_LOGSEVERITYSCREEN="Warning")
    live.take(GLOBAL, "debug")
    assert level() == "warning"


def test_a_value_that_cannot_be_used_is_passed_over() -> None:
    live = begun()
    live.take(GLOBAL, "warn")
    live.take(OWN, "loud")
    assert level() == "warning"


def test_another_setting_asks_for_a_start_while_it_differs() -> None:
    asked: list[int] = []
    settings = load_settings({}, global_config={"HealthPort": "9100"})
    live = LiveSettings(settings, "rack-a", StoredConfig({}, {"HealthPort": "9100"}), lambda: asked.append(1))
    port, own = GlobalConfigKey("HealthPort"), HostConfigKey("rack-a", "HealthPort")
    live.take(port, "9100")
    live.take(own, " 9100 ")
    live.take(GlobalConfigKey("LogSeverityScreen"), "debug")
    assert (asked, live.differing) == ([], {})
    live.take(own, "9101")
    assert (asked, live.differing) == ([1], {"health_port": 9101})
    live.take(own, None)
    assert live.differing == {}
    live.take(port, None)
    assert (asked, live.differing) == ([1, 1], {"health_port": 9099})
    live.take(port, "high")
    assert live.differing == {"health_port": 9099}


def test_a_setting_of_the_environment_needs_no_start() -> None:
    asked: list[int] = []
    live = LiveSettings(load_settings({"FELIX_HEALTHPORT": "9"}), "rack-a", None, lambda: asked.append(1))
    live.take(GlobalConfigKey("HealthPort"), "10")
    assert (asked, live.differing) == ([], {})


def test_an_unknown_name_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    live = LiveSettings(load_settings({}), "rack-a", StoredConfig({}, {"Zzz": "1"}))
    for name in ("Zzz", "HealthPrt", "HealthPrt", "marker"):
        live.take(GlobalConfigKey(name), "2")
    said = [each for each in caplog.records if each.getMessage() == "settings.unknown_name"]
    assert [each.calico_fields["name"] for each in said] == ["HealthPrt"]  # type: ignore[attr-defined]


def test_a_bad_value_changes_nothing_until_it_is_a_good_one() -> None:
    asked: list[int] = []
    stored = StoredConfig({"HealthPort": "9100"}, {})
    live = LiveSettings(load_settings({}, host_config=stored.of_host), "rack-a", stored, lambda: asked.append(1))
    own = HostConfigKey("rack-a", "HealthPort")
    for text in ("high", "9100", "99999999"):
        live.take(own, text)
        assert (asked, live.differing) == ([], {})
    live.take(own, "9101")
    assert (asked, live.differing) == ([1], {"health_port": 9101})


def test_a_bad_value_asks_for_a_start_where_the_default_counts_instead() -> None:
    asked: list[int] = []
    stored = StoredConfig({}, {"DropActionOverride": "ACCEPT"})
    settings = load_settings({}, global_config=stored.of_all)
    live = LiveSettings(settings, "rack-a", stored, lambda: asked.append(1))
    own, of_all = HostConfigKey("rack-a", "DropActionOverride"), GlobalConfigKey("DropActionOverride")
    live.take(of_all, "DRPO")
    assert (asked, live.differing) == ([1], {"drop_override": "DROP"})
    live.take(of_all, "ACCEPT")
    assert (asked, live.differing) == ([1], {})
    live.take(own, "DRPO")
    assert (asked, live.differing) == ([1, 1], {"drop_override": "DROP"}), "as a start has it"
    live.take(own, None)
    assert live.differing == {}


def test_a_file_is_opened_and_left_as_the_datastore_says(tmp_path: Path) -> None:
    first, second = tmp_path / "first.log", tmp_path / "deep" / "second.log"
    targets = LogTargets()
    live = LiveSettings(load_settings({}), "rack-a", follow=targets.follow)
    live.begin()
    try:
        live.take(GlobalConfigKey("LogFilePath"), str(first))
        log.get_logger("calico_core.test").info("event.one")
        live.take(GlobalConfigKey("LogFilePath"), str(second))
        log.get_logger("calico_core.test").info("event.two")
        live.take(GlobalConfigKey("LogSeverityFile"), "none")
        log.get_logger("calico_core.test").error("event.three")
    finally:
        targets.close()
    assert "event.one" in first.read_text()
    assert "event.two" not in first.read_text()
    assert "event.two" in second.read_text()
    assert "event.three" not in second.read_text()


def test_a_file_that_cannot_be_written_is_told_and_the_old_one_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.log"
    targets = LogTargets()
    live = LiveSettings(load_settings({"FELIX_LOGSEVERITYFILE": "info"}), "rack-a", follow=targets.follow)
    live.begin()
    try:
        live.take(GlobalConfigKey("LogFilePath"), str(good))
        live.take(GlobalConfigKey("LogFilePath"), f"{good}/under/a/file.log")
        log.get_logger("calico_core.test").info("event.after")
    finally:
        targets.close()
    assert "event.after" in good.read_text()
    assert "settings.not_followed" in good.read_text()
    assert "log_file" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_holds_up_no_other_setting(capsys: pytest.CaptureFixture[str]) -> None:
    targets = LogTargets()
    live = LiveSettings(load_settings({}), "rack-a", follow=targets.follow)
    live.begin()
    live.take(HostConfigKey("rack-a", "LogFilePath"), "/proc/nope/felix.log")
    live.take(GLOBAL, "debug")
    assert level() == "debug"
    told = capsys.readouterr().err
    assert "settings.followed setting=log_level" in told
    assert "settings.followed setting=log_file" not in told
    assert "log_file (from datastore host LogFilePath): /proc/nope/felix.log cannot be written" in told


def test_a_start_with_a_file_that_cannot_be_written_follows_the_rest() -> None:
    stored = StoredConfig({}, {"LogFilePath": "/proc/nope/felix.log", "LogSeverityScreen": "debug"})
    settings = load_settings({}, global_config=stored.of_all)
    LiveSettings(settings, "rack-a", stored, follow=LogTargets().follow).begin()
    assert level() == "debug"


def test_what_could_not_be_written_is_tried_again_with_the_next_change(tmp_path: Path) -> None:
    first, late = tmp_path / "first.log", tmp_path / "none" / "late.log"
    late.parent.touch()  # no directory
    targets = LogTargets()
    live = LiveSettings(load_settings({}), "rack-a", follow=targets.follow)
    live.begin()
    try:
        live.take(GlobalConfigKey("LogFilePath"), str(first))
        live.take(GlobalConfigKey("LogFilePath"), str(late))
        late.parent.unlink()
        live.take(GlobalConfigKey("LogSeverityFile"), "debug")
        log.get_logger("calico_core.test").debug("event.one")
    finally:
        targets.close()
    assert "event.one" in late.read_text()
    assert "event.one" not in first.read_text()

"""The log level follows the datastore while nothing nearer says otherwise."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from calico_core import log
from calico_core.model.keys import GlobalConfigKey, HostConfigKey
from calico_core.node.live_settings import LiveSettings
from calico_core.settings import load_settings

GLOBAL, OWN = GlobalConfigKey("LogSeverityScreen"), HostConfigKey("rack-a", "LogSeverityScreen")


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    before = {name: logging.getLogger(name).level for name in log.PACKAGES}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def level() -> str:
    return logging.getLevelName(logging.getLogger("calico_core").level).lower()


def begun(**environment: str) -> LiveSettings:
    live = LiveSettings(load_settings(environment), "rack-a")
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
    assert level() == "error"
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

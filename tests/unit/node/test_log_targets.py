"""The log's three places: what goes where, and what happens when one of them does not take it."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from calico_core import log
from calico_core.errors import InvalidSettings
from calico_core.node import log_behind
from calico_core.node.log_targets import LogTargets
from calico_core.settings import load_settings
from tests.waiting import eventually

EVENTS = log.get_logger("calico_core.test")


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    """A daemon's socket, which nobody reads yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "syslog"))
        found.settimeout(5)
        yield found


@pytest.fixture
def targets(screen: io.StringIO, tmp_path: Path) -> Iterator[LogTargets]:
    made = LogTargets(stream=screen, syslog=str(tmp_path / "syslog"))
    yield made
    made.close()


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_each_place_has_its_own_level(
    targets: LogTargets, screen: io.StringIO, syslog: socket.socket, tmp_path: Path
) -> None:
    file = tmp_path / "made" / "calico.log"
    targets.follow(load_settings({"FELIX_LOGFILEPATH": str(file), "FELIX_LOGSEVERITYFILE": "Debug",
                                  "FELIX_LOGSEVERITYSCREEN": "warn", "FELIX_LOGSEVERITYSYS": "CRIT"}))  # fmt: skip
    EVENTS.debug("event.debug", why="two words")
    EVENTS.warning("event.warning")
    EVENTS.critical("event.critical", code=3)
    targets.close()
    assert re.findall(r"event\.\w+", screen.getvalue()) == ["event.warning", "event.critical"]
    assert re.findall(r"event\.\w+", file.read_text()) == ["event.debug", "event.warning", "event.critical"]
    first = file.read_text().splitlines()[0]
    where = rf"\[{os.getpid()}/{threading.current_thread().name}\]"
    clock = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    assert re.fullmatch(rf"{clock} debug   {where} event.debug why='two words'", first)
    # facility daemon (3), severity critical (2): RFC 3164, 4.1.1
    assert syslog.recv(4096) == f"<26>calico-node[{os.getpid()}]: critical event.critical code=3\0".encode()
    syslog.setblocking(False)
    with pytest.raises(BlockingIOError):
        syslog.recv(4096)
    assert (targets.counts.dropped, targets.counts.errors) == (0, 0)


def test_json_goes_to_the_file_as_to_the_screen(targets: LogTargets, tmp_path: Path) -> None:
    file = tmp_path / "calico.log"
    targets.follow(load_settings({"FELIX_LOGFILEPATH": str(file), "CALICO_LOG_FORMAT": "json"}))
    try:
        raise KeyError("cause")
    except KeyError:
        EVENTS.exception("it.failed", endpoint="e1")
    targets.close()
    entry = json.loads(file.read_text())
    assert (entry["event"], entry["endpoint"]) == ("it.failed", "e1")
    assert "KeyError: 'cause'" in entry["traceback"]


def test_a_file_that_was_moved_away_is_opened_again(targets: LogTargets, tmp_path: Path) -> None:
    file, old = tmp_path / "calico.log", tmp_path / "calico.log.1"
    targets.follow(load_settings({"FELIX_LOGFILEPATH": str(file)}))
    EVENTS.info("event.one")
    eventually(lambda: "event.one" in text_of(file))
    file.rename(old)
    EVENTS.info("event.two")
    eventually(lambda: "event.two" in text_of(file))
    assert "event.two" not in old.read_text()


def test_reopening_follows_a_file_under_the_same_name(targets: LogTargets, tmp_path: Path) -> None:
    """What a rotation with a link in the path does: the name leads elsewhere."""
    first, second = tmp_path / "first", tmp_path / "second"
    link = tmp_path / "logs"
    for directory in (first, second):
        directory.mkdir()
    link.symlink_to(first)
    targets.follow(load_settings({"FELIX_LOGFILEPATH": str(link / "calico.log")}))
    EVENTS.info("event.one")
    eventually(lambda: "event.one" in text_of(first / "calico.log"))
    link.unlink()
    link.symlink_to(second)
    targets.reopen()
    EVENTS.info("event.two")
    eventually(lambda: "event.two" in text_of(second / "calico.log"))
    assert "event.two" not in text_of(first / "calico.log")


def test_a_file_that_cannot_be_written_is_named_and_nothing_changes(targets: LogTargets, tmp_path: Path) -> None:
    good = tmp_path / "good.log"
    targets.follow(load_settings({"FELIX_LOGFILEPATH": str(good)}))
    with pytest.raises(InvalidSettings, match=r"log_file.*FELIX_LOGFILEPATH.*cannot be written: Is a directory"):
        targets.follow(load_settings({"FELIX_LOGFILEPATH": str(tmp_path), "FELIX_LOGSEVERITYSCREEN": "none"}))
    EVENTS.info("event.after")
    targets.close()
    assert "event.after" in good.read_text()


def test_events_of_a_file_that_went_bad_are_counted_and_it_comes_back(targets: LogTargets, tmp_path: Path) -> None:
    directory, away = tmp_path / "logs", tmp_path / "away"
    file = directory / "calico.log"
    targets.follow(load_settings({"FELIX_LOGFILEPATH": str(file)}))
    EVENTS.info("event.one")
    eventually(lambda: "event.one" in text_of(file))
    directory.rename(away)
    EVENTS.info("event.lost")
    eventually(lambda: targets.counts.errors == 1)
    away.rename(directory)
    EVENTS.info("event.two")
    eventually(lambda: "event.two" in text_of(file))
    assert targets.counts.errors == 1


def test_a_full_disk_is_counted_and_stops_nothing(targets: LogTargets, screen: io.StringIO) -> None:
    targets.follow(load_settings({"FELIX_LOGFILEPATH": "/dev/full"}))
    EVENTS.info("event.lost")
    eventually(lambda: targets.counts.errors == 1)
    assert "event.lost" in screen.getvalue()


def test_a_syslog_daemon_may_come_later(targets: LogTargets, tmp_path: Path) -> None:
    targets.follow(load_settings({"FELIX_LOGSEVERITYSYS": "info"}))
    EVENTS.info("event.lost")
    eventually(lambda: targets.counts.errors == 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "syslog"))
        daemon.settimeout(5)
        EVENTS.info("event.heard")
        assert b"event.heard" in daemon.recv(4096)
    assert targets.counts.errors == 1


@pytest.mark.usefixtures("syslog")
def test_a_syslog_daemon_that_hangs_holds_nobody_up(
    targets: LogTargets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel holds a few datagrams that nobody reads, then a send waits for ever."""
    monkeypatch.setattr(log_behind, "_ROOM", 50)
    monkeypatch.setattr(log_behind, "_LAST_WORDS_S", 0.1)
    file = tmp_path / "calico.log"
    targets.follow(load_settings({"FELIX_LOGSEVERITYSYS": "info"}))
    sent = 0
    while not targets.counts.dropped:
        EVENTS.info("event.many", number=sent)
        sent += 1
        assert sent < 100_000
    targets.follow(load_settings({"FELIX_LOGSEVERITYSYS": "info", "FELIX_LOGFILEPATH": str(file)}))
    EVENTS.info("event.beside")
    eventually(lambda: "event.beside" in text_of(file))


def test_closing_writes_what_waits(targets: LogTargets, tmp_path: Path) -> None:
    file = tmp_path / "calico.log"
    targets.follow(load_settings({"FELIX_LOGFILEPATH": str(file)}))
    for number in range(2000):
        EVENTS.info("event.many", number=number)
    targets.close()
    assert len(file.read_text().splitlines()) == 2000
    targets.close()


def test_a_file_that_is_to_get_nothing_is_told_of(targets: LogTargets, screen: io.StringIO, tmp_path: Path) -> None:
    """A new datastore says that the file's level is none."""
    file = tmp_path / "calico.log"
    targets.follow(load_settings({"FELIX_LOGFILEPATH": str(file)}, global_config={"LogSeverityFile": "none"}))
    assert not file.exists()
    assert "log.file_without_level" in screen.getvalue()
    assert "origin='datastore global LogSeverityFile'" in screen.getvalue()

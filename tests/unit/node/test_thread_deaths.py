"""Threads that end by an error: told, and the end of the node where it cannot do without them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from calico_core.node.thread_deaths import ThreadDeaths


@pytest.fixture
def ended() -> Iterator[list[str]]:
    heard: list[str] = []
    deaths = ThreadDeaths(lambda: heard.append("node"))
    before = threading.excepthook
    deaths.watch()
    yield heard
    deaths.stop()
    assert threading.excepthook is before


def fail() -> None:
    raise KeyError("cause")


@pytest.mark.parametrize(("name", "heard"), [("link-monitor", ["node"]), ("libnetwork", [])])
def test_it_is_told_with_its_traceback_and_ends_the_node_if_it_must(
    ended: list[str], caplog: pytest.LogCaptureFixture, name: str, heard: list[str]
) -> None:
    thread = threading.Thread(target=fail, name=name)
    thread.start()
    thread.join(10)
    (said,) = [each for each in caplog.records if each.getMessage() == "thread.died"]
    assert said.calico_fields == {"thread": name, "is_vital": bool(heard)}  # type: ignore[attr-defined]
    assert said.exc_info is not None
    assert repr(said.exc_info[1]) == "KeyError('cause')"
    assert ended == heard


def test_a_thread_that_ends_well_is_not_told_of(ended: list[str], caplog: pytest.LogCaptureFixture) -> None:
    thread = threading.Thread(target=lambda: None, name="link-monitor")
    thread.start()
    thread.join(10)
    assert (ended, caplog.records) == ([], [])

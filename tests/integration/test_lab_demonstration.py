"""The demonstration, with the real node, calicoctl and CNI plugin."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest

from calico_core.errors import CalicoError
from calico_core.lab.demonstration import demonstrate
from calico_core.lab.journal import ROOT
from calico_core.lab.probes import probe_until
from calico_core.lab.topology import Laboratory

pytestmark = pytest.mark.needs_root


@pytest.fixture
def name() -> str:
    return f"d{uuid.uuid4().hex[:8]}"


def leftovers(name: str) -> list[str]:
    return [entry.name for folder in (Path("/run/netns"), ROOT) if folder.exists() for entry in folder.glob(f"{name}*")]


def test_it_shows_what_it_says_and_leaves_nothing(name: str) -> None:
    steps = list(demonstrate(name))
    tables = [step.table for step in steps if step.table and step.table[0][0].startswith("from")]
    assert tables == [
        (
            ("from \\ to", "web-1", "web-2", "db-1"),
            ("web-1", "—", "yes", "no"),
            ("web-2", "yes", "—", "no"),
            ("db-1", "no", "no", "—"),
        ),
        (
            ("from \\ to", "web-1", "web-2", "db-1"),
            ("web-1", "—", "yes", "yes"),
            ("web-2", "yes", "—", "yes"),
            ("db-1", "no", "no", "—"),
        ),
    ]
    assert all(step.title and step.text and step.seconds >= 0 for step in steps)
    assert leftovers(name) == []


@pytest.mark.skipif(shutil.which("bird") is None, reason="BIRD is not installed")
def test_two_hosts_exchange_routes(name: str) -> None:
    steps = list(demonstrate(name, hosts=2))
    attached = next(step.table for step in steps if step.table and step.table[0][0] == "Container")
    assert [row[1] for row in attached[1:]] == ["host1", "host2", "host2"]
    assert any("BGP" in step.text for step in steps)
    assert leftovers(name) == []


def test_who_stops_listening_leaves_nothing(name: str) -> None:
    steps = demonstrate(name)
    next(steps)
    assert leftovers(name) != []
    steps.close()  # type: ignore[attr-defined]
    assert leftovers(name) == []


def test_kept_it_can_be_played_with(name: str) -> None:
    try:
        last = list(demonstrate(name, keep=True))[-1]
        assert f"calicoctl lab down --name {name}" in last.text
        lab = Laboratory.load(name)
        assert lab.status().missing == ()
        web, database = lab.workload("web-1"), lab.workload("db-1")
        lab.hosts[0].calicoctl("profile", "database", "rule", "add", "inbound", "allow", "icmp")
        assert probe_until(web, database, "icmp", is_reachable=True, within_s=10).is_reachable
        with pytest.raises(CalicoError, match="exists already"):
            next(demonstrate(name))
    finally:
        Laboratory.remove(name)
    assert leftovers(name) == []

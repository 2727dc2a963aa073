"""A program that writes rules stops working under a running agent: nothing opens, and the agent ends in the end."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from netaddr import IPNetwork

from calico_core.dataplane.iptables.driver import IptablesDataplane
from calico_core.dataplane.linux import netns
from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import ReadyKey, WorkloadEndpointKey
from calico_core.node.agent import Agent
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root

PROGRAMS = ("iptables-nft-restore", "ip6tables-nft-restore")
WAIT_S = 20.0


@pytest.fixture
def is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file by whose presence the programs fail."""
    flag, folder = tmp_path / "broken", tmp_path / "bin"
    folder.mkdir()
    for name in PROGRAMS:
        real = shutil.which(name)
        assert real is not None
        wrapper = folder / name
        wrapper.write_text(f'#!/bin/sh\n[ -e {flag} ] && {{ echo "no memory" >&2; exit 4; }}\nexec {real} "$@"\n')
        wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return flag


@pytest.fixture
def namespace() -> Iterator[tuple[str, int]]:
    name = f"refused-{os.getpid()}"
    descriptor = netns.open_namespace(str(netns.create_namespace(name)))
    yield name, descriptor
    os.close(descriptor)
    netns.delete_namespace(name)


def rules(namespace: str) -> str:
    argv = ["ip", "netns", "exec", namespace, "iptables-nft-save"]
    saved = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return "\n".join(line for line in saved.splitlines() if not line.startswith("#"))


def test_rules_stay_while_their_program_fails_and_the_agent_ends(is_broken: Path, namespace: tuple[str, int]) -> None:
    name, descriptor = namespace
    deaths: list[bool] = []
    records = TypedRecords(MemoryDatastore())
    records.put(ReadyKey(), "true")
    dataplane = IptablesDataplane(DataplaneOptions(host="h"), descriptor, "nft")
    agent = Agent(
        store=records.store,
        host="h",
        dataplane=dataplane,
        refresh_interval_s=0.2,
        on_death=lambda: deaths.append(True),
        give_up_after_s=5.0,
    )

    def write(interface: str, address: str) -> tuple[WorkloadEndpointKey, int]:
        key = WorkloadEndpointKey("h", "test", interface, "eth0")
        record = WorkloadEndpoint(state="active", name=interface, ipv4_nets=(IPNetwork(address),))
        return key, records.put(key, record)

    agent.start()
    try:
        assert agent.wait_programmed(*write("cali1", "10.65.0.1"), WAIT_S)
        before = rules(name)
        is_broken.touch()
        assert not agent.wait_programmed(*write("cali2", "10.65.0.2"), WAIT_S)
        assert agent.is_refused
        assert "no memory" in agent.last_error
        assert rules(name) == before
        is_broken.unlink()
        eventually(lambda: not agent.is_refused, within_s=WAIT_S)
        assert not deaths
        before = rules(name)
        assert "cali2" in before

        is_broken.touch()
        write("cali3", "10.65.0.3")
        eventually(lambda: deaths, within_s=WAIT_S)
        assert rules(name) == before
    finally:
        agent.stop()
        dataplane.close()

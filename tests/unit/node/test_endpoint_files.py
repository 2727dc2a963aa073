"""Files of endpoints whose policy is in force, in a real directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from netaddr import EUI, IPNetwork

from calico_core.model.hoststate import HostWorkload
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.node.agent_state import AgentState
from calico_core.node.endpoint_files import EndpointFiles, name_of
from tests.waiting import eventually

ONE = WorkloadEndpointKey("rack-a", "k8s", "default/pod-1", "eth0")
TWO = WorkloadEndpointKey("rack-a", "libnetwork", "lib net", "a@b~c%")
UP, DOWN = ("up", ""), ("down", "its interface does not exist or is down")


class Bench:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.workloads: dict[WorkloadEndpointKey, HostWorkload] = {}
        self.files = EndpointFiles(directory, self.workloads.get)

    def say(self, *, is_applied: bool = True, **statuses: tuple[str, str]) -> None:
        keys = {"one": ONE, "two": TWO}
        endpoints = {keys[name]: status for name, status in statuses.items()}
        self.files.put(AgentState(is_in_sync=True, is_applied=is_applied, endpoints=endpoints))

    def names(self) -> set[str]:
        return {each.name for each in self.directory.iterdir()} if self.directory.exists() else set()

    def eventually(self, *keys: WorkloadEndpointKey) -> None:
        eventually(lambda: self.names() == {name_of(key) for key in keys})

    def content(self, key: WorkloadEndpointKey) -> object:
        return json.loads((self.directory / name_of(key)).read_text())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "calico" / "endpoint-status")
    made.files.start()
    yield made
    made.files.stop()


def test_names_are_those_of_the_reference_system() -> None:
    assert name_of(ONE) == "k8s default%2Fpod-1 eth0"
    assert name_of(TWO) == "libnetwork lib%20net a@b~c%25"


def test_files_follow_what_is_up(bench: Bench) -> None:
    bench.workloads[ONE] = HostWorkload(
        key=ONE,
        interface="cali1",
        is_active=True,
        mac=EUI("EE-EE-EE-00-00-01"),
        nets=(IPNetwork("10.65.0.1/32"), IPNetwork("fd80::1/128")),
    )
    bench.say(one=UP, two=DOWN)
    bench.eventually(ONE)
    assert bench.content(ONE) == {
        "ifaceName": "cali1",
        "mac": "ee:ee:ee:00:00:01",
        "ipv4Nets": ["10.65.0.1/32"],
        "ipv6Nets": ["fd80::1/128"],
    }
    bench.say(one=UP, two=UP)
    bench.eventually(ONE, TWO)
    bench.say(one=("error", "refused"), two=UP)
    bench.eventually(TWO)
    bench.say()
    bench.eventually()


def test_another_content_is_written_again(bench: Bench) -> None:
    bench.workloads[ONE] = HostWorkload(key=ONE, interface="cali1", is_active=True)
    bench.say(one=UP)
    bench.eventually(ONE)
    bench.workloads[ONE] = HostWorkload(key=ONE, interface="cali2", is_active=True)
    bench.say(one=UP)
    eventually(lambda: bench.content(ONE) == {"ifaceName": "cali2"})


def test_what_an_earlier_life_left_goes_once_the_kernel_is_right(bench: Bench) -> None:
    bench.directory.mkdir(parents=True)
    for name in (name_of(ONE), name_of(TWO), ".123.new"):
        (bench.directory / name).write_text("{}")
    bench.say(is_applied=False)
    bench.say(one=UP)
    bench.eventually(ONE)


def test_a_file_that_cannot_be_is_told_once_and_holds_up_no_other(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The name of a pod may have 253 letters, which is too long a file's name with the rest."""
    long = WorkloadEndpointKey("rack-a", "k8s", "default." + "a" * 250, "eth0")

    def say(*keys: WorkloadEndpointKey) -> None:
        bench.files.put(AgentState(is_in_sync=True, is_applied=True, endpoints=dict.fromkeys(keys, UP)))

    say(long, ONE)
    bench.eventually(ONE)
    say(long, ONE, TWO)
    bench.eventually(ONE, TWO)
    say(TWO)
    bench.eventually(TWO)
    assert caplog.messages == ["endpoint_files.not_written"]
    assert caplog.records[0].calico_fields["first"] == name_of(long)  # type: ignore[attr-defined]


def test_a_directory_that_cannot_be_is_told_once_and_nothing_dies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("")
    files = EndpointFiles(tmp_path / "taken" / "endpoint-status", lambda _: None)
    files.start()
    try:
        state = AgentState(is_in_sync=True, is_applied=True, endpoints={ONE: UP})

        def told() -> list[str]:
            return [each.getMessage() for each in caplog.records if each.getMessage() == "endpoint_files.not_written"]

        files.put(state)
        eventually(lambda: bool(told()))
        (tmp_path / "taken").unlink()
        files.put(state)
        eventually((tmp_path / "taken" / "endpoint-status" / name_of(ONE)).exists)
        assert len(told()) == 1
        assert files.is_alive
    finally:
        files.stop()

"""Records that nobody should write, on a real kernel: what can be read is in force, and the rest is named."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from calico_core.dataplane.iptables.driver import IptablesDataplane
from calico_core.dataplane.linux import netns
from calico_core.dataplane.nftables.driver import NftablesDataplane
from calico_core.interfaces.dataplane import Dataplane, DataplaneOptions
from tests.doubles.broken_records import HOST, records
from tests.property.test_broken_records import Bench, running
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root
LINKS = "link add cali0 type veth peer name cali1"
OPTIONS = DataplaneOptions(host=HOST)


@pytest.fixture(scope="module", params=["nftables", "iptables"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    name = f"broken-{os.getpid()}-{request.param}"
    descriptor = netns.open_namespace(str(netns.create_namespace(name)))
    made: dict[str, type[Dataplane]] = {"nftables": NftablesDataplane, "iptables": IptablesDataplane}
    subprocess.run(["ip", "-n", name, *LINKS.split()], check=True)
    for interface in ("cali0", "cali1"):
        subprocess.run(["ip", "-n", name, "link", "set", interface, "up"], check=True)
    try:
        with running(made[request.param](OPTIONS, descriptor)) as bench:
            yield bench
    finally:
        os.close(descriptor)
        netns.delete_namespace(name)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(stored=records())
def test_the_kernel_takes_all_that_can_be_read(bench: Bench, stored: dict[str, bytes]) -> None:
    bench.reach(stored)
    eventually(lambda: bench.agent.last_error == "")

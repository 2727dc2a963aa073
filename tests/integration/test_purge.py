"""A host that is given up: everything of ours, old or new, goes from its kernel, and nothing of anybody else's."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from calico_core.lab.host import LabHost
from calico_core.lab.probes import probe_until
from calico_core.lab.topology import Laboratory

pytestmark = pytest.mark.needs_root

REFERENCE = """\
*filter
:felix-FORWARD - [0:0]
:cali-INPUT - [0:0]
:mine - [0:0]
-A FORWARD -j felix-FORWARD
-A INPUT -m comment --comment "cali:abc" -j cali-INPUT
-A FORWARD -j mine
-A felix-FORWARD -m set --match-set felix-v4-x src -j DROP
-A mine -j RETURN
COMMIT
"""
SETS = "create felix-v4-x hash:ip family inet\ncreate theirs hash:ip family inet\n"


@pytest.fixture
def lab() -> Iterator[Laboratory]:
    with Laboratory.create(f"p{uuid.uuid4().hex[:8]}", 1, datastore="sqlite", routing="none") as made:
        yield made


def kernel(host: LabHost) -> str:
    programs = (("nft", "list", "tables"), ("iptables-save",), ("ipset", "save"), ("ip", "route", "show"))
    text = "\n".join(host.run(each).stdout for each in programs)
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))  # there the time stands


@pytest.mark.parametrize("driver", ["nftables", "iptables"])
def test_all_of_ours_goes_and_nothing_else(lab: Laboratory, driver: str) -> None:
    (host,) = lab.hosts
    host.run(("ipset", "restore"), stdin=SETS)
    host.start_node(environment={"CALICO_DATAPLANE_DRIVER": driver})
    host.install_cni()
    first, second = lab.add_workload(host), lab.add_workload(host)
    for workload in (first, second):
        workload.attach(network="net")
    assert probe_until(first, second, "tcp", is_reachable=True, within_s=10).is_reachable
    host.run(("iptables-restore", "--noflush"), stdin=REFERENCE)

    running = host.calicoctl("node", "purge", "--yes", "--force", check=False)
    assert (running.returncode, "stop it first" in running.stderr) == (5, True)
    host.stop_node()
    attached = host.calicoctl("node", "purge", "--yes", check=False)
    assert (attached.returncode, "--force" in attached.stderr) == (5, True)
    before = kernel(host)
    assert host.calicoctl("node", "purge", "--force", stdin="n\n", check=False).returncode != 0
    assert kernel(host) == before
    assert str(first.addresses[0]) in before

    done = host.calicoctl("node", "purge", "--force", stdin="y\n")
    assert "Remove it all?" in done.stderr
    assert "felix-FORWARD" in done.stdout
    left = kernel(host)
    for gone in ("inet calico", "calico-", "felix-", "cali-", "cali:", str(first.addresses[0])):
        assert gone not in left, left
    for kept in ("-A FORWARD -j mine", "create theirs"):
        assert kept in left
    again = host.calicoctl("node", "purge", "--force", "--yes")
    assert "FAILED" not in again.stdout

    host.start_node(environment={"CALICO_DATAPLANE_DRIVER": driver})
    assert probe_until(first, second, "tcp", is_reachable=True, within_s=15).is_reachable

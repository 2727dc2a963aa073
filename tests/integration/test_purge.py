"""A host that is given up: everything of ours, old or new, goes from its kernel, and nothing of anybody else's."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from calico_core.lab.host import LabHost
from calico_core.lab.probes import probe_until
from calico_core.lab.topology import Laboratory

pytestmark = pytest.mark.needs_root

REFERENCE = """\
*filter
:felix-FORWARD - [0:0]
:cali-INPUT - [0:0]
-A FORWARD -j felix-FORWARD
-A INPUT -m comment --comment "cali:abc" -j cali-INPUT
-A felix-FORWARD -m set --match-set felix-v4-x src -j DROP
COMMIT
"""
REFERENCE6 = """\
*raw
:cali-PREROUTING - [0:0]
-A PREROUTING -m comment --comment "cali:def" -j cali-PREROUTING
-A cali-PREROUTING -j MARK --set-xmark 0x0/0xf0000
COMMIT
"""
REFERENCE_SETS = "create felix-v4-x hash:ip family inet\ncreate cali60s:abc hash:net family inet6\n"
REFERENCE_TABLE = """
table ip calico {
  map filter-cali-fw { type ifname : verdict; }
  chain filter-FORWARD { type filter hook forward priority 0; policy accept; jump filter-cali-FORWARD; }
  chain filter-cali-FORWARD { counter; }
}
"""

KERNEL_CHAINS = {
    "filter": "INPUT FORWARD OUTPUT",
    "nat": "PREROUTING INPUT OUTPUT POSTROUTING",
    "mangle": "PREROUTING INPUT FORWARD OUTPUT POSTROUTING",
    "raw": "PREROUTING OUTPUT",
}
FOREIGN_RULES = Path(__file__).parents[1] / "fixtures" / "foreign_rules"
#: What looks like ours, or like the reference agent's, and is somebody else's.
THEIRS = """
table ip6 calico {
  chain mine { counter accept; }
}
table inet calico_too {
  set workloads { type ifname; elements = { "cali0", "cali1" } }
  map verdicts { type ifname : verdict; }
  chain calico-forward { type filter hook forward priority 5; policy accept; iifname @workloads counter accept; }
}
"""
THEIR_CHAINS = """\
*filter
:mine - [0:0]
:my-calico - [0:0]
-A FORWARD -j mine
-A INPUT -i cali+ -m comment --comment "no cali: rule" -j my-calico
-A mine -m set --match-set theirs src -j RETURN
COMMIT
"""
THEIR_SETS = "create theirs hash:ip family inet\nadd theirs 192.0.2.1\ncreate my-calico-set hash:net family inet6\n"


@pytest.fixture
def lab() -> Iterator[Laboratory]:
    with Laboratory.create(f"p{uuid.uuid4().hex[:8]}", 1, datastore="sqlite", routing="none") as made:
        yield made


def kernel(host: LabHost) -> str:
    """All rules with their handles, sets and routes, without what counts or tells the time, and without the kernel's
    own routes, which follow links and addresses."""
    texts = [host.run(each).stdout for each in (("nft", "-a", "-s", "list", "ruleset"), ("ipset", "save"))]
    texts += [host.run((f"{each}-save",)).stdout for each in ("iptables", "ip6tables")]
    texts += [host.run(("ip", family, "route", "show", "table", "all")).stdout for family in ("-4", "-6")]
    lines = re.sub(r"^#.*$|\[\d+:\d+\]", "", "\n".join(texts), flags=re.MULTILINE).splitlines()
    return "\n".join(line for line in lines if " proto kernel " not in line)


def load_foreign(host: LabHost) -> None:
    """Rules of kube-proxy in both of its modes, and of somebody who knows our names."""
    # the kernel's own chains stand from the first rule in them on
    every: list[str] = []
    for table, chains in KERNEL_CHAINS.items():
        every += [f"*{table}", *(f":{chain} ACCEPT [0:0]" for chain in chains.split()), "COMMIT"]
    for program in ("iptables", "ip6tables"):
        host.run((f"{program}-restore", "--noflush"), stdin="\n".join((*every, "")))
        host.run((program, "-A", "OUTPUT", "-j", "ACCEPT"))
    host.run(("ipset", "restore"), stdin=THEIR_SETS)
    proxy = (FOREIGN_RULES / "kube_proxy.iptables").read_text().replace("{WORKLOAD}", "10.65.0.9")
    for text in (proxy, THEIR_CHAINS):
        host.run(("iptables-restore", "--noflush"), stdin=text)
    proxy = (FOREIGN_RULES / "kube_proxy.nft").read_text().replace("{WORKLOAD}", "10.65.0.9")
    for text in (proxy, THEIRS):
        host.run(("nft", "-f", "-"), stdin=text)
    host.run(("ip", "route", "add", "blackhole", "198.51.100.0/24", "proto", "99"))


def load_reference(host: LabHost) -> None:
    host.run(("ipset", "restore"), stdin=REFERENCE_SETS)
    host.run(("iptables-restore", "--noflush"), stdin=REFERENCE)
    host.run(("ip6tables-restore", "--noflush"), stdin=REFERENCE6)
    host.run(("nft", "-f", "-"), stdin=REFERENCE_TABLE)


@pytest.mark.parametrize("driver", ["nftables", "iptables"])
def test_all_of_ours_goes_and_nothing_else(lab: Laboratory, driver: str) -> None:
    (host,) = lab.hosts
    load_foreign(host)
    clean = kernel(host)
    host.start_node(environment={"CALICO_DATAPLANE_DRIVER": driver})
    host.install_cni()
    first, second = lab.add_workload(host), lab.add_workload(host)
    for workload in (first, second):
        workload.attach(network="net")
    assert probe_until(first, second, "tcp", is_reachable=True, within_s=10).is_reachable
    load_reference(host)

    running = host.calicoctl("node", "purge", "--yes", "--force", check=False)
    assert (running.returncode, "stop it first" in running.stderr) == (5, True)
    host.stop_node()
    attached = host.calicoctl("node", "purge", "--yes", check=False)
    assert (attached.returncode, "--force" in attached.stderr) == (5, True)
    before = kernel(host)
    assert host.calicoctl("node", "purge", "--force", stdin="n\n", check=False).returncode != 0
    assert kernel(host) == before
    marks = ("calico-pi-" if driver == "iptables" else "table inet calico {", "felix-v4-x", "filter-cali-FORWARD")
    for there in (*marks, "cali-INPUT", "cali-PREROUTING", "cali60s:abc", str(first.addresses[0])):
        assert there in before, there

    done = host.calicoctl("node", "purge", "--force", stdin="y\n")
    assert "Remove it all?" in done.stderr
    assert "felix-FORWARD" in done.stdout
    # of ours and of the reference agent's nothing is left, and what others have was not even written anew
    assert kernel(host).splitlines() == clean.splitlines()
    again = host.calicoctl("node", "purge", "--force", "--yes")
    assert "FAILED" not in again.stdout
    assert kernel(host).splitlines() == clean.splitlines()

    host.start_node(environment={"CALICO_DATAPLANE_DRIVER": driver})
    assert probe_until(first, second, "tcp", is_reachable=True, within_s=15).is_reachable

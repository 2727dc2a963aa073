"""A process for one call loads what such a call uses, and no more."""

from __future__ import annotations

import subprocess
import sys

UNUSED = (
    "calico_core.policy", "calico_core.dataplane.iptables", "calico_core.dataplane.nftables.builder",
    "calico_kubernetes", "calico_libnetwork", "calico_mesos", "grpc", "importlib.metadata", "stevedore",
)  # fmt: skip


def test_the_way_to_an_answer_loads_nothing_of_what_it_does_without() -> None:
    script = (
        "import sys, calico_core.node.oneshot, calico_cni.integration, calico_core.datastore.sqlite\n"
        "import calico_core.ipam.allocator, calico_core.dataplane.nftables.driver\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    found = done.stdout.split()
    assert "calico_core.node.composition" in found
    assert not [name for name in found if name.startswith(UNUSED)]

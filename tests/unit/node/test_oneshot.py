"""A process for one call loads what such a call uses, and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from calico_core.node import composition
from calico_core.settings_file import load_local_settings

if TYPE_CHECKING:
    from pathlib import Path

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


def test_what_a_call_imports_and_does_not_use_is_not_read(tmp_path: Path) -> None:
    """The whole process, up to its answer to a call that is refused late: its namespace is not there."""
    settings = load_local_settings(
        {
            "CALICO_DATASTORE": f"sqlite://{tmp_path}/calico.db",
            "CALICO_STATE_DIRECTORY": str(tmp_path),
            "CALICO_RUN_DIRECTORY": str(tmp_path),
            "CALICO_DATAPLANE_DRIVER": "memory",
            "CALICO_INTEGRATIONS": "cni",
        }
    )
    composition.save_settings(settings, "host")
    composition.save_shortcuts(settings, "memory", composition.select_integrations(settings)[0])
    configuration = {"cniVersion": "1.0.0", "name": "n", "type": "calico", "ipam": {"type": "calico-ipam"}}
    call = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": f"{tmp_path}/none", "CNI_IFNAME": "eth0"}
    done = subprocess.run(
        [sys.executable, "-I", "-X", "importtime", "-m", "calico_core.node.oneshot", str(tmp_path), "calico"],
        input=json.dumps(configuration), env=call, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert json.loads(done.stdout)["code"] == 8, done
    read = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "calico_cni.kubernetes_api" in read
    assert not read & {
        "_ssl", "http.client", "inspect", "random", "shutil", "subprocess", "tempfile", "traceback",
        "email.parser",  # of http.client: one that was postponed and is read after all is not listed itself
    }  # fmt: skip

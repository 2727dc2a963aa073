"""The seam is real only if a stranger can use it: a package installed by pip attaches a real workload."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from calico_core.dataplane.linux import netns
from calico_core.lab.host import LabHost
from tests.e2e.observing import MakeLab, workload_keys

pytestmark = pytest.mark.needs_root
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


SHIM = """
import sys
from calico_core.interfaces.integration import Call
from calico_core.node.socket_api import call_node

reply = call_node(sys.argv[1], Call(program="acme-net", environment={}, stdin=sys.stdin.buffer.read()))
sys.stdout.buffer.write(reply.stdout)
sys.stderr.buffer.write(reply.stderr)
sys.exit(reply.status)
"""


def shim(host: LabHost, **request: str) -> str:
    """A stranger's executable, started on the host. Raises ``ToolFailed`` when it fails."""
    return host.run([sys.executable, "-c", SHIM, str(host.socket)], stdin=json.dumps(request)).stdout


def test_a_strangers_integration_attaches_a_workload(make_lab: MakeLab, tmp_path: Path) -> None:
    for name in ("thirdparty", "thirdparty_broken"):
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"),
                *("--target", tmp_path / "site", FIXTURES / name),
            ],
            check=True,
        )
    lab = make_lab(1, nodes=False)
    host = lab.hosts[0]
    host.start_node(environment={"PYTHONPATH": str(tmp_path / "site")})
    status = json.loads(host.calicoctl("status", "-o", "json").stdout)
    assert status["integrations"]["acme"] == "ready"
    assert status["integrations"]["cni"] == "ready"
    assert "on purpose" in status["integrations"]["broken"]
    assert "API version 0" in status["integrations"]["outdated"]

    name = f"{lab.name}-acme"
    path = netns.create_namespace(name)
    try:
        answer = json.loads(shim(host, do="attach", id="job-7", netns=str(path)))
        assert answer["is_safe"] is True
        address = answer["addresses"][0].partition("/")[0]
        host.run(["ping", "-c", "1", "-W", "10", address])
        shim(host, do="detach", id="job-7")
        assert workload_keys(host) == []
    finally:
        netns.delete_namespace(name)

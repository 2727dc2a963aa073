"""An ADD that dies between any two of its effects: what the runtime does next, DEL or the same ADD, ends well."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calico_core.lab.host import LabHost
from tests.e2e.cni.containers import Container, a_network, assert_settles, containers, whole_state
from tests.e2e.cni.dying import DIED

pytestmark = pytest.mark.needs_root

AT_LEAST = 6  # commit, pair, container's end, host's end, sysctls
TIMEOUT_S = 60.0


def die(host: LabHost, container: Container, number: int, when: str) -> bool:
    """Whether it died; else it had ended before."""
    argv = [
        sys.executable,
        str(Path(__file__).with_name("dying.py")),
        str(number),
        when,
        str(host.socket.parent),
        "calico",
    ]
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": container.id,
        "CNI_NETNS": str(container.namespace),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(host.cni_bin_directory),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        ["nsenter", f"--net={host.namespace}", "--", *argv],
        env=environment,
        input=json.dumps(a_network()).encode(),
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode in {0, DIED}, (done.stdout, done.stderr)
    return done.returncode == DIED


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("follows", ["DEL", "ADD", "another container"])
def test_dead_at_each_effect_of_an_add(shared_host: LabHost, when: str, follows: str) -> None:
    before = whole_state(shared_host)
    for number in itertools.count(1):
        with containers(shared_host, 1, prefix=f"d{when[0]}{follows[0]}{number}-") as (container,):
            has_died = die(shared_host, container, number, when)
            if follows == "ADD":
                result = container.call("ADD")
                assert container.call("CHECK", a_network(prevResult=result)) is None
            if follows == "another container":  # which the runtime starts in its place, and deletes the dead one later
                with containers(shared_host, 1, prefix=f"e{when[0]}{number}-") as (other,):
                    result = other.call("ADD")
                    container.call("DEL")
                    assert other.call("CHECK", a_network(prevResult=result)) is None
                    other.call("DEL")
            container.call("DEL", environment={"CNI_NETNS": ""})
            assert container.ip("-o", "link").count("\n") == 1, f"effect {number}"
            assert_settles(shared_host, before)
        if not has_died:
            break
    assert number > AT_LEAST

"""A process for one call loads what the call uses, and whatever it puts off is there when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from calico_core.node.lean_start import LATER

BEGIN = "import sys; from calico_core.node import lean_start; lean_start.begin()\n"


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-I", "-c", BEGIN + script], capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.stdout.strip()


def test_the_way_to_an_answer_loads_nothing_of_what_it_does_without() -> None:
    found = run(
        "import calico_core.node.oneshot, calico_cni.integration, calico_core.datastore.sqlite\n"
        "import calico_core.ipam.allocator, calico_core.dataplane.nftables.driver\n"
        "print(*(name for name, found in sys.modules.items() if type(found) is not lean_start._Later))"
    ).split()
    assert "calico_core.node.composition" in found
    assert not LATER & set(found)
    assert not {"stevedore", "importlib.metadata", "grpc", "typing_extensions"} & set(found)
    unused = ("calico_core.policy", "calico_libnetwork", "calico_mesos", "calico_kubernetes")
    assert not [name for name in found if name.startswith((*unused, "calico_core.dataplane.iptables"))]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("import json; print(json.dumps([1]))", "[1]"),
        ("import http.client; print(http.client.OK.value)", "200"),
        ("from http.client import OK; print(OK.value)", "200"),
        ("import asyncio; print(asyncio.run(asyncio.sleep(0, 3)))", "3"),
        ("import platform; print(platform.system(), bool(platform.python_version()))", "Linux True"),
        ("import hashlib; print(hashlib.sha1(b'', usedforsecurity=False).hexdigest()[:8])", "da39a3ee"),
        ("import netaddr; print(netaddr.EUI('00:50:c2:00:00:01').oui.registration().oui)", "00-50-C2"),
        ("from importlib.resources import files; print(files('netaddr').name)", "netaddr"),
        ("import typing_extensions; print(typing_extensions.Literal[1].__args__)", "(1,)"),
        ("import ssl; print(hasattr(ssl, 'nothing'), issubclass(ssl.SSLError, OSError))", "False True"),
    ],
)
def test_what_is_put_off_comes_when_it_is_asked_for(question: str, answer: str) -> None:
    assert run(question) == answer


def test_threads_that_ask_at_once_get_the_whole_module() -> None:
    script = (
        "import ssl, threading\n"
        "found, start = [], threading.Barrier(8)\n"
        "def ask():\n"
        "    start.wait(); found.append(ssl.create_default_context)\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "[each.start() for each in threads]; [each.join() for each in threads]\n"
        "print(len(found))"
    )
    assert run(script) == "8"

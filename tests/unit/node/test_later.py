"""Modules that are read when they are first used."""

from __future__ import annotations

import subprocess
import sys

_PATH = f"import sys; sys.path[:] = {sys.path!r}\n"


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _PATH + script], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_postponed_module_is_read_when_it_is_used() -> None:
    script = """
from calico_core.node.later import postpone
postpone("socket", "http.client", "no_such_module")
import socket, http.client
import socket as again
print("selectors" in sys.modules, "email.parser" in sys.modules, "no_such_module" in sys.modules)
print(socket.AF_INET.name, again is socket, "selectors" in sys.modules, type(socket).__name__)
from http.client import HTTPConnection
print(HTTPConnection is http.client.HTTPConnection, http.client.HTTPConnection.__module__)
print(hasattr(socket, "no_such_name"))
"""
    assert run(script).splitlines() == [
        "False False False", "AF_INET True True module", "True http.client", "False",
    ]  # fmt: skip


def test_a_module_that_is_there_stays_as_it_is() -> None:
    script = """
import socket
from calico_core.node.later import postpone
postpone("socket")
print(sys.modules["socket"] is socket, type(socket).__name__)
"""
    assert run(script) == "True module"


def test_threads_that_meet_in_one_module_read_it_once() -> None:
    script = """
import threading
from calico_core.node.later import postpone
postpone("http.client")
import http.client
met, found = threading.Barrier(8), []
def use():
    met.wait()
    found.append(http.client.HTTPException)
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found), len(set(found)))
"""
    assert run(script) == "8 1"

"""An etcd of the laboratory's own, in the fabric, reachable from every host."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from netaddr import IPAddress

from calico_core.errors import NotReady
from calico_core.lab import processes
from calico_core.lab.record import ProcessRecord
from calico_core.lab.station import Station, open_socket

PORT = 2379
_WAIT_S = 60.0
_POLL_S = 0.01
_ASK_S = 2.0


def url_of(address: IPAddress) -> str:
    """For ``CALICO_DATASTORE``."""
    return f"etcd3://{_bracketed(address)}:{PORT}"


def start(fabric: Station, directory: Path) -> ProcessRecord:
    """Start it; :func:`await_health` says when it serves. The data lie in ``directory``."""
    url = f"http://{_bracketed(fabric.addresses[0])}:{PORT}"
    peer = "http://127.0.0.1:2380"
    argv = (
        *("etcd", "--name", "lab", "--data-dir", str(directory / "etcd")),
        *("--listen-client-urls", f"{url},http://127.0.0.1:{PORT}", "--advertise-client-urls", url),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"lab={peer}"),
        *("--logger", "zap", "--log-level", "error"),
    )
    return processes.spawn(
        "etcd",
        argv,
        host=fabric.name,
        namespace=fabric.namespace,
        environment={name: value for name, value in os.environ.items() if not name.startswith("ETCD_")},
        log_file=_log_file(directory),
    )


def await_health(process: ProcessRecord, fabric: Station, directory: Path) -> None:
    """:raises NotReady: it ended, or does not serve within a minute; with the end of its log."""
    deadline = time.monotonic() + _WAIT_S
    while not _is_healthy(fabric):
        if not processes.is_running(process):
            raise NotReady(f"etcd ended at once: {processes.tail(_log_file(directory)).strip()}")
        if time.monotonic() > deadline:
            raise NotReady(f"etcd did not start in {_WAIT_S:g} s: {processes.tail(_log_file(directory)).strip()}")
        time.sleep(_POLL_S)


def _is_healthy(fabric: Station) -> bool:
    with open_socket(fabric, socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(_ASK_S)
        try:
            client.connect(("127.0.0.1", PORT))
            client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            answer = b""
            while part := client.recv(4096):
                answer += part
        except OSError:
            return False
    return b'"health":"true"' in answer


def _log_file(directory: Path) -> Path:
    return directory / "etcd.log"


def _bracketed(address: IPAddress) -> str:
    return f"[{address}]" if address.version == 6 else str(address)

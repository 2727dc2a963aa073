"""What the IPAM plugin ``host-local`` keeps of one network: a directory with a file an address.

A file is named by its address and holds the container's id and, after a line break, the interface's name; versions
before 0.8 wrote the id alone. Beside them are ``last_reserved_ip.N`` and ``lock``, which every process of the plugin
holds while it works. Source: containernetworking/plugins, ``host-local/backend/disk``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from netaddr import INET_PTON, AddrFormatError, IPAddress

from calico_cni.environment import NAME
from calico_cni.file_lock import locked
from calico_cni.identity import FIRST_INTERFACE
from calico_core.errors import InvalidRequest

DIRECTORY = "/var/lib/cni/networks/k8s-pod-network"
"""Where the reference system's manifests let it keep its addresses."""
_LOCK = "lock"
_LAST_RESERVED = "last_reserved_ip"
_PAUSE_S = 0.05


class Lease(NamedTuple):
    """One address of one interface."""

    address: IPAddress
    container_id: str
    interface: str
    file_name: str


class HostLocalLeases:
    """Of one network, which its directory is named after. One thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def network(self) -> str:
        return self.directory.name

    def exists(self) -> bool:
        """:raises InvalidRequest: something else goes by its name."""
        if not self.directory.exists():
            return False
        if not self.directory.is_dir():
            raise InvalidRequest("directory", f"{self.directory} is no directory: name the one of a host-local network")
        return True

    @contextlib.contextmanager
    def locked(self, *, timeout_s: float) -> Iterator[None]:
        """No ``host-local`` works meanwhile; those that are called wait.

        :raises NotReady: one of them does not end.
        """
        path = self.directory / _LOCK
        with locked(path, timeout_s=timeout_s, reason=f"another process holds {path} for {timeout_s:g} s"):
            yield

    def read(self) -> tuple[tuple[Lease, ...], tuple[str, ...]]:
        """The leases by address, and the names of files that are none of the plugin's."""
        leases, strangers = [], []
        for path in sorted(self.directory.iterdir()):
            if path.name == _LOCK or path.name.startswith(_LAST_RESERVED):
                continue
            lease = _lease_in(path)
            if lease is None:
                strangers.append(path.name)
            else:
                leases.append(lease)
        return tuple(sorted(leases)), tuple(strangers)

    def forget(self, lease: Lease) -> None:
        """That it is gone already is fine."""
        (self.directory / lease.file_name).unlink(missing_ok=True)

    def remove(self) -> None:
        """What is left when every lease is forgotten."""
        for path in sorted(self.directory.glob(f"{_LAST_RESERVED}*")):
            path.unlink(missing_ok=True)
        (self.directory / _LOCK).unlink(missing_ok=True)
        self.directory.rmdir()


def _lease_in(path: Path) -> Lease | None:
    try:
        address = IPAddress(path.name, flags=INET_PTON)
        container_id, _, interface = path.read_text().partition("\n")
    except (AddrFormatError, ValueError, OSError):
        return None
    lease = Lease(address, container_id.strip(), interface.strip() or FIRST_INTERFACE, path.name)
    return lease if NAME.fullmatch(lease.container_id) else None

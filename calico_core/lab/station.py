"""A place that packets leave from and arrive at: a network namespace with addresses."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Protocol

import msgspec
from netaddr import IPAddress

from calico_core.dataplane.linux import netns
from calico_core.errors import InvalidRequest


class Station(Protocol):
    """Hosts and workloads of a laboratory are stations; :class:`PlainStation` is any other namespace."""

    @property
    def name(self) -> str: ...

    @property
    def namespace(self) -> Path: ...

    @property
    def addresses(self) -> tuple[IPAddress, ...]: ...


class PlainStation(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace somebody else made."""

    name: str
    namespace: Path
    addresses: tuple[IPAddress, ...]


def address_of(station: Station, ip_version: int) -> IPAddress:
    """The first address of the family."""
    for address in station.addresses:
        if address.version == ip_version:
            return address
    raise InvalidRequest("target", f"{station.name} has no IPv{ip_version} address")


def open_socket(station: Station, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A non-blocking socket of the station's namespace.

    :raises NamespaceGone: the namespace ended.
    """
    descriptor = netns.open_namespace(str(station.namespace))
    try:
        return netns.socket_in(descriptor, family, kind | socket.SOCK_NONBLOCK, protocol)
    finally:
        os.close(descriptor)

"""``prevResult``: what the plugins before us, or our own ADD, have left. Source: cni specification 2.5 and 2.6."""

from __future__ import annotations

from typing import NamedTuple

from netaddr import IPAddress

from calico_cni.results import Result, decode_result, encode_result
from calico_cni.wire import CommonConfiguration, read_version
from calico_core.errors import InvalidRequest


class Previous(NamedTuple):
    """As seen from one interface of the container."""

    result: Result
    container_interface: str
    raw: bytes

    @classmethod
    def of(cls, configuration: CommonConfiguration, container_interface: str) -> Previous:
        """:raises InvalidRequest: there is none, or it is no result; :raises IncompatibleVersion: of its version."""
        if not configuration.has_prev_result:
            raise InvalidRequest("prevResult", "is required")
        raw = bytes(configuration.prev_result)
        return cls(decode_result(raw, configuration.version), container_interface, raw)

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Of our interface, IPv4 first; those that name no interface count."""
        indexes = {index for index in range(len(self.result.interfaces)) if self._is_ours(index)}
        found = {ip.host for ip in self.result.ips if ip.interface is None or ip.interface in indexes}
        return tuple(sorted(found, key=lambda address: (address.version, address.value)))

    @property
    def host_interfaces(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.result.interfaces if not each.sandbox)

    def encode(self, version: str) -> bytes:
        """As it came, if it has the version asked for."""
        if read_version(self.raw) == version:
            return self.raw
        return encode_result(self.result, version)

    def _is_ours(self, index: int) -> bool:
        return self.result.interfaces[index].name == self.container_interface

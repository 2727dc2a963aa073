"""Which host endpoint stands for which interface of this host. Source: felix specification 6.11.

A record with a name is of that interface, whether the interface is there yet or not, so that none opens before its
policy; one without is of every interface that has an address it expects. Where several records meet on an interface
the first by name is in force. An excluded interface is the business of a record with its name alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from netaddr import IPAddress

from calico_core.log import get_logger
from calico_core.model.endpoints import HostEndpoint
from calico_core.model.ids import is_host_interface
from calico_core.model.keys import HostEndpointKey

log = get_logger(__name__)

Addresses = frozenset[IPAddress]


class HostEndpoints:
    """The records of this host × its interfaces. No record is of an interface whose name begins as workloads' do."""

    def __init__(
        self, workload_prefixes: tuple[str, ...] = (), is_excluded: Callable[[str], bool] = lambda _interface: False
    ) -> None:
        self._workload_prefixes, self._is_excluded = workload_prefixes, is_excluded
        self.records: dict[HostEndpointKey, HostEndpoint] = {}
        self._interfaces: dict[str, Addresses] = {}
        self._contested: frozenset[tuple[str, HostEndpointKey]] = frozenset()

    def set_record(self, key: HostEndpointKey, record: HostEndpoint | None) -> None:
        if record is None:
            self.records.pop(key, None)
            return
        self.records[key] = record
        if record.name is not None and self._is_workload(record.name):
            reason = "the interface is a workload's"
            log.warning("host_endpoint.not_in_force", interface=record.name, endpoint=key.endpoint, reason=reason)

    def set_interface(self, name: str, addresses: Addresses | None) -> bool:
        """An interface of the host, no workload's; None: it is gone. Whether that is news."""
        if self._interfaces.get(name) == addresses:
            return False
        if addresses is None:
            del self._interfaces[name]
        else:
            self._interfaces[name] = addresses
        return True

    @property
    def excluded(self) -> tuple[str, ...]:
        """Interfaces that are there and excluded, sorted."""
        return tuple(name for name in sorted(self._interfaces) if self._is_excluded(name) and is_host_interface(name))

    def by_interface(self) -> dict[str, HostEndpointKey]:
        """By interface's name, sorted."""
        claims: defaultdict[str, list[HostEndpointKey]] = defaultdict(list)
        for key in sorted(self.records, key=lambda key: key.endpoint):
            record = self.records[key]
            if record.name is not None:
                if not self._is_workload(record.name):
                    claims[record.name].append(key)
                continue
            wanted = frozenset(record.addresses)
            for name, addresses in self._interfaces.items():
                if not wanted.isdisjoint(addresses) and not self._is_excluded(name):
                    claims[name].append(key)
        self._report({(name, key) for name, keys in claims.items() for key in keys[1:]})
        return {name: claims[name][0] for name in sorted(claims)}

    def _is_workload(self, interface: str) -> bool:
        return interface.startswith(self._workload_prefixes)

    def _report(self, contested: set[tuple[str, HostEndpointKey]]) -> None:
        for name, key in sorted(contested - self._contested, key=lambda each: (each[0], each[1].endpoint)):
            log.warning("host_endpoint.not_in_force", interface=name, endpoint=key.endpoint, reason="another is first")
        self._contested = frozenset(contested)

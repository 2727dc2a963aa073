"""What one host's kernel and integrations say, as values: the second sign beside the datastore."""

from __future__ import annotations

import msgspec
from netaddr import IPAddress, IPNetwork

from calico_core.model.addresses import contains
from calico_core.model.record import Value


class LocalView(Value, frozen=True):
    """One host at one moment.

    ``host_routes``: destination of each /32 and /128 that leads straight into a device → that device.
    ``subnets``: longer connected routes, which lead to bridges and uplinks. Routes through a gateway, blackholes and
    the default route are no sign of anything on this host. ``lists``: integration → the addresses it names in use,
    with whose each is; ``silent`` are integrations that could not say.
    """

    host: str
    interface_prefix: str = "cali"
    interfaces: frozenset[str] = frozenset()
    addresses: frozenset[IPAddress] = frozenset()
    host_routes: dict[IPAddress, str] = msgspec.field(default_factory=dict)
    subnets: tuple[IPNetwork, ...] = ()
    lists: dict[str, dict[IPAddress, str]] = msgspec.field(default_factory=dict)
    silent: frozenset[str] = frozenset()

    def carries(self, address: IPAddress) -> bool:
        """Whether an interface has the address, or a route leads to it on this very host."""
        if address in self.addresses or address in self.host_routes:
            return True
        return any(contains(subnet, address) for subnet in self.subnets)

    def claims(self, address: IPAddress, orchestrator: str | None = None) -> bool:
        """Whether an integration wants the address, or its own (``orchestrator``) could not be asked."""
        return orchestrator in self.silent or any(address in names for names in self.lists.values())

    def is_workload(self, interface: str) -> bool:
        prefixes = (part.strip() for part in self.interface_prefix.split(","))
        return interface.startswith(tuple(prefix for prefix in prefixes if prefix))

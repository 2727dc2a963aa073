"""What one host's kernel and integrations say, as values: the second sign beside the datastore."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec
from netaddr import IPAddress, IPNetwork

from calico_core.model.addresses import contains
from calico_core.model.record import Value

if TYPE_CHECKING:
    from calico_core.ipam.store_view import Held


class LocalView(Value, frozen=True):
    """One host at one moment.

    ``host_routes``: destination of each /32 and /128 that leads straight into a device → that device.
    ``subnets``: longer connected routes, which lead to bridges and uplinks. Routes through a gateway, blackholes and
    the default route are no sign of anything on this host. ``lists``: orchestrator → the addresses it names in use,
    with whose each is; one that could not be asked is missing.
    """

    host: str
    interface_prefixes: tuple[str, ...] = ("cali",)
    interfaces: frozenset[str] = frozenset()
    addresses: frozenset[IPAddress] = frozenset()
    host_routes: dict[IPAddress, str] = msgspec.field(default_factory=dict)
    subnets: tuple[IPNetwork, ...] = ()
    lists: dict[str, dict[IPAddress, str]] = msgspec.field(default_factory=dict)

    def carries(self, address: IPAddress) -> bool:
        """Whether an interface has the address, or a route leads to it on this very host."""
        if address in self.addresses or address in self.host_routes:
            return True
        return any(contains(subnet, address) for subnet in self.subnets)

    def claims(self, address: IPAddress, orchestrator: str | None = None) -> bool:
        """Whether an integration wants the address, or its own (``orchestrator``) could not be asked."""
        is_unknown = orchestrator is not None and orchestrator not in self.lists
        return is_unknown or any(address in names for names in self.lists.values())

    def sign_of(self, held: Held, named: Collection[str]) -> str:
        """Why the workload that holds the address may live on this host; empty: nothing in the kernel says so.

        ``named`` are the interfaces that endpoint records name. A route goes with the record, so it is no proof on
        its own: the workload's interface counts too, and where nobody noted which one that is, every workload
        interface without a record does.
        """
        if self.carries(held.address):
            return f"the kernel of {self.host} has {held.address}"
        if held.interface is not None:
            is_there = held.interface in self.interfaces
            return f"its interface {held.interface} exists on {self.host}" if is_there else ""
        stray = next((name for name in sorted(self.interfaces) if self.is_workload(name) and name not in named), "")
        return f"{stray} on {self.host} may be its interface: no endpoint names it" if stray else ""

    def is_workload(self, interface: str) -> bool:
        return interface.startswith(self.interface_prefixes)

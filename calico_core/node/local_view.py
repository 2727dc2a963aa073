"""Reads what this host's kernel says of addresses and interfaces: the shell around :class:`LocalView`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.linux.prefix import AF_INET, network_of
from calico_core.dataplane.linux.route_messages import RTN_UNICAST
from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.errors import CalicoError
from calico_core.ipam.local_view import LocalView
from calico_core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from calico_core.dataplane.linux.prefix import Prefix
    from calico_core.interfaces.integration import Integration
    from calico_core.model.endpoints import WorkloadEndpoint

log = get_logger(__name__)


def read_local_view(
    host: str,
    interface_prefixes: tuple[str, ...],
    *,
    lists: Mapping[str, dict[IPAddress, str]] | None = None,
    namespace_fd: int | None = None,
) -> LocalView:
    """Of the namespace this thread is in, unless another is given. Raises ``KernelRefused``."""
    with RouteSocket(namespace_fd) as inside:
        names = {link.index: link.name for link in inside.links()}
        addresses = {_address(found.prefix) for found in inside.addresses()}
        routes = inside.routes()
    host_routes: dict[IPAddress, str] = {}
    subnets: list[IPNetwork] = []
    for route in routes:
        if route.type != RTN_UNICAST or route.gateway or route.index not in names or not route.destination.length:
            continue
        if route.destination.is_host:
            host_routes[_address(route.destination)] = names[route.index]
        elif not _address(route.destination).is_link_local():
            subnets.append(network_of(route.destination))
    return LocalView(
        host=host,
        interface_prefixes=interface_prefixes,
        interfaces=frozenset(names.values()),
        addresses=frozenset(addresses),
        host_routes=host_routes,
        subnets=tuple(subnets),
        lists=dict(lists or {}),
    )


def ask_integrations(integrations: Mapping[str, Integration]) -> dict[str, dict[IPAddress, str]]:
    """Orchestrator → list. Who could not answer is left out: what it holds is left alone."""
    lists: dict[str, dict[IPAddress, str]] = {}
    for name, integration in integrations.items():
        try:
            found = dict(integration.addresses_in_use())
            lists |= dict.fromkeys(integration.info.filed_under, found)
        except CalicoError as error:
            log.warning("integration.list_unknown", integration=name, reason=str(error))
        except Exception:  # it may come from a third party
            log.exception("integration.list_unknown", integration=name)
    return lists


def lost_sandboxes(endpoints: Iterable[WorkloadEndpoint]) -> frozenset[str]:
    """Recorded namespaces that are not there, as far as this process can tell: where it cannot see the directory in
    which they would be, nothing is lost."""
    paths = {endpoint.netns for endpoint in endpoints if endpoint.netns and endpoint.netns.startswith("/")}
    return frozenset(path for path in paths if _is_lost(Path(path)))


def _is_lost(path: Path) -> bool:
    if os.path.lexists(path):
        return False
    if path.parts[1] == "proc":  # of a process: the kernel says so for every one that has ended
        return True
    return path.parent.is_dir()


def _address(prefix: Prefix) -> IPAddress:
    return IPAddress(int.from_bytes(prefix.address, "big"), 4 if prefix.family == AF_INET else 6)

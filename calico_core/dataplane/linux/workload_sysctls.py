"""The sysctls of a workload's two interface ends. Source: cni specification 5.2, felix specification 6.9."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.dataplane.linux import sysctl
from calico_core.dataplane.linux.sysctl import Setting

if TYPE_CHECKING:
    from collections.abc import Iterable

_DEVCONF = {"forwarding": 1, "proxy_arp": 3, "rp_filter": 8, "route_localnet": 26}
"""IPV4_DEVCONF_* (linux/ip.h): what a message about a link can carry of ``ipv4/conf/<link>/``."""


def host_end(
    interface: str, *, has_v4: bool, has_v6: bool, opens_loopback: bool, has_prefixes: bool = False
) -> tuple[Setting, ...]:
    """For the host end, to be written before it goes up. ``opens_loopback``: what a workload asks of the metadata
    address leads to the host's loopback. Without it ``route_localnet`` is not ours: a plugin behind us that maps
    ports sets it where it needs it. ``has_prefixes``: the workload may send from prefixes of IPv4 that are not routed
    to it, and policy alone checks its sources."""
    v4, v6 = f"ipv4/conf/{interface}/", f"ipv6/conf/{interface}/"
    settings: list[Setting] = []
    if has_v4:
        if opens_loopback:
            settings.append(Setting(v4 + "route_localnet", "1"))
        settings += (
            Setting(f"ipv4/neigh/{interface}/proxy_delay", "0", is_vital=False),
            Setting(v4 + "proxy_arp", "1"),
            Setting(v4 + "forwarding", "1"),
            source_check(interface, is_strict=not has_prefixes),
        )
    if has_v6:
        settings += (
            Setting(v6 + "accept_dad", "0"),
            Setting(v6 + "disable_ipv6", "0"),
            Setting(v6 + "proxy_ndp", "1"),
            Setting(v6 + "forwarding", "1"),
        )
    if sysctl.has_ipv6():
        settings.append(Setting(v6 + "accept_ra", "0", is_vital=False))
    return tuple(settings)


def source_check(interface: str, *, is_strict: bool) -> Setting:
    """The kernel's own, of IPv4. Strict from the first packet on: it is to be in force before policy is, and needed
    no more once that is."""
    return Setting(f"ipv4/conf/{interface}/rp_filter", "1" if is_strict else "0", is_vital=not is_strict)


def container_namespace(*, has_v4: bool, has_v6: bool, is_forwarding: bool) -> tuple[Setting, ...]:
    """For the whole container namespace; ``is_forwarding`` lets the workload route for others."""
    forwarding = "1" if is_forwarding else "0"
    settings: list[Setting] = []
    if has_v4:
        settings.append(Setting("ipv4/ip_forward", forwarding))
    if has_v6:
        settings += (
            Setting("ipv6/conf/all/disable_ipv6", "0"),
            Setting("ipv6/conf/default/disable_ipv6", "0"),
            Setting("ipv6/conf/lo/disable_ipv6", "0"),
            Setting("ipv6/conf/all/forwarding", forwarding),
        )
    return tuple(settings)


def container_end(interface: str, *, has_v6: bool) -> tuple[Setting, ...]:
    """For the container's interface, to be written before it goes up."""
    if not has_v6:
        return ()
    prefix = f"ipv6/conf/{interface}/"
    return (
        Setting(prefix + "disable_ipv6", "0"),
        Setting(prefix + "accept_dad", "0"),
        Setting(prefix + "accept_ra", "0"),
    )


def of_the_link(settings: Iterable[Setting]) -> tuple[dict[int, int], tuple[Setting, ...]]:
    """Those that a link's own message can carry, by number, and the rest, which are files: each file costs as much
    as a request."""
    carried: dict[int, int] = {}
    files: list[Setting] = []
    for setting in settings:
        folder, _, name = setting.path.rpartition("/")
        if folder.startswith("ipv4/conf/") and name in _DEVCONF:
            carried[_DEVCONF[name]] = int(setting.value)
        else:
            files.append(setting)
    return carried, tuple(files)

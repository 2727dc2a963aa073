"""Settings that name a driver: whether one of that name is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.errors import InvalidSettings, PluginMissing

if TYPE_CHECKING:
    from calico_core.settings import Settings


def check_drivers(settings: Settings) -> None:
    """Without importing any. Raises ``InvalidSettings``."""
    from calico_core.plugin_host.loader import driver_of_url, names
    from calico_core.plugin_host.namespaces import DATAPLANES, DATASTORES, ROUTING

    try:
        wanted = {DATASTORES: driver_of_url(settings.datastore)}
        if settings.dataplane_driver != "auto":
            wanted[DATAPLANES] = settings.dataplane_driver
        wanted[ROUTING] = settings.routing_driver
        for namespace, name in wanted.items():
            if name not in (installed := names(namespace)):
                raise PluginMissing(namespace, name, installed)
    except PluginMissing as error:
        raise of_setting(error, settings) or error from error


def of_setting(error: PluginMissing, settings: Settings) -> InvalidSettings | None:
    """Which setting asks for what is missing, if one does."""
    from calico_core.plugin_host.namespaces import DATAPLANES, DATASTORES, ROUTING

    named = {DATASTORES: "datastore", DATAPLANES: "dataplane_driver", ROUTING: "routing_driver"}
    name = named.get(error.namespace)
    if name is None:
        return None
    reason = f"no driver {error.name!r} is installed; there are {', '.join(error.available) or 'none'}"
    return InvalidSettings(name, settings.origins.get(name, "default"), reason)

"""What the resident runtime and a one-shot process have in common: the parts between settings and integrations."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from calico_core.datastore.records import TypedRecords
from calico_core.errors import CalicoError, InvalidSettings, PluginBroken
from calico_core.files import replace_file
from calico_core.interfaces.dataplane import Dataplane
from calico_core.interfaces.datastore import Datastore, DatastoreOptions
from calico_core.interfaces.integration import Integration, IntegrationContext
from calico_core.interfaces.ipam import Ipam
from calico_core.log import get_logger
from calico_core.model.interface_names import parse_interface_names
from calico_core.node.dataplane_options import dataplane_options
from calico_core.plugin_host.loader import LoadedPlugin, driver_of_url, load_all, load_driver
from calico_core.plugin_host.namespaces import DATAPLANES, DATASTORES, INTEGRATIONS, IPAM
from calico_core.policy.resolver import PolicyResolver
from calico_core.settings import Settings

log = get_logger(__name__)

KERNEL_DATAPLANES = ("nftables", "iptables")
"""Those that "auto" chooses from, the first that the host can have."""


def node_name(settings: Settings) -> str:
    """Setting, else what this machine remembered, else its host name. Source: node specification 1.3."""
    if settings.node_name:
        return settings.node_name.strip()
    remembered = Path(settings.state_directory, "nodename")
    try:
        name = remembered.read_text().strip()
    except OSError:
        name = ""
    return name or socket.gethostname().strip().lower()


def open_store(settings: Settings) -> Datastore:
    """The driver the URL names. Raises ``PluginMissing``, ``InvalidSettings``."""
    driver: type[Datastore] = load_driver(DATASTORES, driver_of_url(settings.datastore))
    return driver.open(
        settings.datastore,
        DatastoreOptions(
            ca_file=settings.etcd_ca_file,
            cert_file=settings.etcd_cert_file,
            key_file=settings.etcd_key_file,
            username=settings.etcd_username,
            password=settings.etcd_password,
        ),
    )


def open_records(settings: Settings) -> TypedRecords:
    return TypedRecords(open_store(settings))


def open_ipam(records: TypedRecords, host: str) -> Ipam:
    driver: type[Ipam] = load_driver(IPAM, "block")
    return driver.open(records, host)


def open_dataplane(settings: Settings, host: str, *, makes_router: bool = True) -> Dataplane:
    """``makes_router`` False: whatever the settings say. Raises ``InvalidSettings`` with what is missing for it."""
    driver: type[Dataplane] = load_driver(DATAPLANES, dataplane_name(settings))
    options = dataplane_options(settings, host)
    return driver.open(msgspec.structs.replace(options, makes_router=options.makes_router and makes_router))


def make_resolver(settings: Settings, host: str) -> PolicyResolver:
    return PolicyResolver(
        host,
        interface_prefix=settings.interface_prefix,
        lets_spoof=settings.source_spoofing == "Any",
        has_floating=settings.floating_ips == "Enabled",
        is_excluded=parse_interface_names(settings.excluded_interfaces),
    )


def dataplane_name(settings: Settings) -> str:
    """The driver that the settings name, or the first that this host can have. Raises ``InvalidSettings``."""
    origin = settings.origins.get("dataplane_driver", "default")
    return choose_dataplane(settings.dataplane_driver, origin, lambda name: load_driver(DATAPLANES, name).missing())


def dataplane_lack(name: str) -> str:
    """Why it is not the first choice of "auto" that programs this host, or ''."""
    first = KERNEL_DATAPLANES[0]
    if name == first or name not in KERNEL_DATAPLANES:
        return ""
    lack: str = load_driver(DATAPLANES, first).missing()
    return f"{first}: {lack}" if lack else ""


def choose_dataplane(wanted: str, origin: str, missing: Callable[[str], str]) -> str:
    """``missing`` says what a driver lacks here. Raises ``InvalidSettings`` that says it too."""
    lacks: dict[str, str] = {}
    for name in KERNEL_DATAPLANES if wanted == "auto" else (wanted,):
        lacks[name] = missing(name)
        if not lacks[name]:
            if len(lacks) > 1:
                log.warning("dataplane.second_choice", chosen=name, because=lacks[KERNEL_DATAPLANES[0]])
            return name
    reasons = "; ".join(f"{name}: {reason}" for name, reason in lacks.items())
    raise InvalidSettings("dataplane_driver", origin, reasons)


def select_integrations(settings: Settings) -> tuple[tuple[LoadedPlugin, ...], dict[str, str]]:
    """Installed integrations that the settings want, and a state text for each that cannot be had.

    ``CALICO_INTEGRATIONS`` is a list of names; ``-name`` switches one off; empty means all.
    """
    plugins = load_all(INTEGRATIONS)
    wanted = {name for name in settings.integrations if not name.startswith("-")}
    unwanted = {name[1:] for name in settings.integrations if name.startswith("-")}
    chosen = tuple(
        plugin for plugin in plugins.loaded if plugin.name not in unwanted and (not wanted or plugin.name in wanted)
    )
    states = {broken.name: f"broken: {broken.error}" for broken in plugins.broken}
    for broken in plugins.broken:
        log.warning("plugin.broken", **broken._asdict())
    known = {plugin.name for plugin in plugins.loaded} | states.keys()
    states |= dict.fromkeys(wanted - known, "broken: not installed")
    return chosen, states


def prepare(plugin: LoadedPlugin, context: IntegrationContext) -> Integration:
    """Raises ``PluginBroken`` with the reason; never anything else."""
    try:
        integration: Integration = plugin.target()
        integration.prepare(context)
    except CalicoError as error:
        raise PluginBroken(plugin.name, plugin.distribution, str(error)) from error
    except Exception as error:
        log.exception("integration.prepare_failed", integration=plugin.name, distribution=plugin.distribution)
        raise PluginBroken(plugin.name, plugin.distribution, f"{type(error).__name__}: {error}") from error
    return integration


def save_settings(settings: Settings, host: str) -> None:
    """Leave what a one-shot process needs beside the socket, readable by root alone. Raises ``InvalidSettings`` where
    that cannot be."""
    target = Path(settings.run_directory, "settings.json")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, msgspec.json.encode(msgspec.structs.replace(settings, node_name=host)), 0o600)
    except OSError as error:
        origin = settings.origins.get("run_directory", "default")
        raise InvalidSettings("run_directory", origin, f"{target} cannot be written: {error.strerror}") from error


def load_saved_settings(run_directory: str) -> Settings:
    """Raises ``OSError`` when no node ever ran here, ``InvalidSettings`` for a file that is not ours."""
    path = Path(run_directory, "settings.json")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Settings)
    except msgspec.DecodeError as error:
        raise InvalidSettings("settings", f"file {path}", str(error)) from error

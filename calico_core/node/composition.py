"""What the resident runtime and a one-shot process have in common: the parts between settings and integrations."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from calico_core.datastore.records import TypedRecords
from calico_core.errors import CalicoError, InvalidSettings, PluginBroken, PluginError
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
from calico_core.plugin_host.shortcuts import Shortcuts, decode_shortcuts, take_shortcuts
from calico_core.settings import Settings

if TYPE_CHECKING:
    from calico_core.policy.resolver import PolicyResolver

log = get_logger(__name__)

KERNEL_DATAPLANES = ("nftables", "iptables")
"""Those that "auto" chooses from, the first that the host can have."""
IPAM_DRIVER = "block"
SETTINGS_FILE = "settings.json"
SHORTCUTS_FILE = "shortcuts.json"
"""Both in the run directory."""

LoadDriver = Callable[[str, str], Any]
"""Namespace and name to class: :func:`load_driver`, or the way by notes of a node."""


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


def open_store(settings: Settings, load: LoadDriver = load_driver) -> Datastore:
    """The driver the URL names. Raises ``PluginMissing``, ``InvalidSettings``."""
    driver: type[Datastore] = load(DATASTORES, driver_of_url(settings.datastore))
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


def open_records(settings: Settings, load: LoadDriver = load_driver) -> TypedRecords:
    return TypedRecords(open_store(settings, load))


def open_ipam(records: TypedRecords, host: str, load: LoadDriver = load_driver) -> Ipam:
    driver: type[Ipam] = load(IPAM, IPAM_DRIVER)
    return driver.open(records, host)


def open_dataplane(
    settings: Settings, host: str, load: LoadDriver = load_driver, *, makes_router: bool = True
) -> Dataplane:
    """``makes_router`` False: whatever the settings say. Raises ``InvalidSettings`` with what is missing for it."""
    driver: type[Dataplane] = load(DATAPLANES, dataplane_name(settings, load))
    options = dataplane_options(settings, host)
    return driver.open(msgspec.structs.replace(options, makes_router=options.makes_router and makes_router))


def make_resolver(settings: Settings, host: str) -> PolicyResolver:
    from calico_core.policy.resolver import PolicyResolver  # a process for one call makes none

    return PolicyResolver(
        host,
        interface_prefixes=settings.interface_prefixes,
        lets_spoof=settings.source_spoofing == "Any",
        has_floating=settings.floating_ips == "Enabled",
        is_excluded=parse_interface_names(settings.excluded_interfaces),
    )


def dataplane_name(settings: Settings, load: LoadDriver = load_driver) -> str:
    """The driver that the settings name, or the first that this host can have. One that the datastore names for it and
    that it cannot have is logged and counts as not named: what is said to all hosts must not end one of them.

    :raises InvalidSettings: it can have none, or not the one that environment or file name.
    """
    origin, wanted = settings.origins.get("dataplane_driver", "default"), settings.dataplane_driver

    def missing(name: str) -> str:
        lack: str = load(DATAPLANES, name).missing()
        return lack

    if origin.startswith("datastore "):
        try:
            return choose_dataplane(wanted, origin, missing)
        except (InvalidSettings, PluginError) as error:
            log.error("settings.stored_value_ignored", reason=str(error))
            wanted = "auto"
    return choose_dataplane(wanted, origin, missing)


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
    _save(settings, SETTINGS_FILE, msgspec.json.encode(msgspec.structs.replace(settings, node_name=host)))


def load_saved_settings(run_directory: str) -> Settings:
    """Raises ``OSError`` when no node ever ran here, ``InvalidSettings`` for a file that is not ours."""
    path = Path(run_directory, SETTINGS_FILE)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Settings)
    except msgspec.DecodeError as error:
        raise InvalidSettings("settings", f"file {path}", str(error)) from error


def save_shortcuts(settings: Settings, dataplane: str, integrations: Iterable[LoadedPlugin]) -> None:
    """The classes that these settings led to, for a one-shot process. ``dataplane``: the driver that was chosen.
    It goes without them where they cannot be written."""
    store = driver_of_url(settings.datastore)
    asked = {dataplane, KERNEL_DATAPLANES[0]} if settings.dataplane_driver == "auto" else {dataplane}
    named = {DATASTORES: {store}, IPAM: {IPAM_DRIVER}, DATAPLANES: asked}
    drivers = {namespace: {name: load_driver(namespace, name) for name in names} for namespace, names in named.items()}
    try:
        _save(settings, SHORTCUTS_FILE, msgspec.json.encode(take_shortcuts(drivers, integrations)))
    except InvalidSettings as error:
        log.warning("node.shortcuts_not_saved", reason=error.reason)


def load_shortcuts(run_directory: str) -> Shortcuts:
    """Empty ones when no node left any that hold."""
    try:
        return decode_shortcuts(Path(run_directory, SHORTCUTS_FILE).read_bytes())
    except OSError:
        return Shortcuts()


def _save(settings: Settings, name: str, content: bytes) -> None:
    target = Path(settings.run_directory, name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, content, 0o600)
    except OSError as error:
        origin = settings.origins.get("run_directory", "default")
        raise InvalidSettings("run_directory", origin, f"{target} cannot be written: {error.strerror}") from error

"""Loads what is named by entry points. The only importer of stevedore.

A driver is loaded by name and must work. Integrations are loaded all together, and one that is broken is reported
with its distribution, version and traceback and never stops the rest.
"""

from __future__ import annotations

import inspect
import traceback
from typing import Any, NamedTuple

from calico_core.errors import PluginBroken, PluginIncompatible, PluginMissing
from calico_core.interfaces.integration import API_VERSION
from calico_core.plugin_host.namespaces import DATASTORES, DEMANDED, INTEGRATIONS


class LoadedPlugin(NamedTuple):
    """What an entry point led to. Whose it is, is looked up when somebody asks: that reads all that is installed."""

    name: str
    target: Any
    namespace: str
    value: str

    @property
    def distribution(self) -> str:
        return self._owner[0]

    @property
    def version(self) -> str:
        return self._owner[1]

    @property
    def _owner(self) -> tuple[str, str]:
        return _owner(_owners(self.namespace), self)


class BrokenPlugin(NamedTuple):
    """``error`` is for people, ``details`` is the traceback (or '' where none was raised)."""

    name: str
    distribution: str
    version: str
    error: str
    details: str = ""


class Plugins(NamedTuple):
    loaded: tuple[LoadedPlugin, ...]
    broken: tuple[BrokenPlugin, ...]


def load_driver(namespace: str, name: str) -> Any:
    """The class behind one name. Raises ``PluginMissing`` with what is installed, ``PluginBroken`` with the cause."""
    from stevedore import DriverManager
    from stevedore.exception import NoMatches

    failures: list[tuple[Any, BaseException]] = []

    def keep(_manager: Any, entry_point: Any, error: BaseException) -> None:
        failures.append((entry_point, error))

    try:
        manager = DriverManager(
            namespace, name, invoke_on_load=False, on_load_failure_callback=keep, on_missing_entrypoints_callback=None
        )
    except NoMatches:
        if failures:
            entry_point, error = failures[0]
            owner, _ = _owner(_owners(namespace), entry_point)
            raise PluginBroken(name, owner, f"{type(error).__name__}: {error}") from error
        raise PluginMissing(namespace, name, names(namespace)) from None
    reason = _mismatch(namespace, manager.driver)
    if reason:
        raise PluginBroken(name, _owner(_owners(namespace), manager[name].entry_point)[0], reason)
    return manager.driver


def load_all(namespace: str) -> Plugins:
    """Everything installed in a namespace, the broken ones apart."""
    from stevedore import ExtensionManager

    loaded: list[LoadedPlugin] = []
    broken: list[BrokenPlugin] = []

    def refuse(entry_point: Any, reason: str, details: str = "") -> None:
        broken.append(BrokenPlugin(entry_point.name, *_owner(_owners(namespace), entry_point), reason, details))

    def keep(_manager: Any, entry_point: Any, error: BaseException) -> None:
        refuse(entry_point, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))

    manager = ExtensionManager(namespace, invoke_on_load=False, on_load_failure_callback=keep)
    for extension in manager:
        reason = _mismatch(namespace, extension.plugin)
        if reason:
            refuse(extension.entry_point, reason)
            continue
        loaded.append(LoadedPlugin(extension.name, extension.plugin, namespace, extension.entry_point.value))
    return Plugins(tuple(sorted(loaded)), tuple(sorted(broken)))


def names(namespace: str) -> tuple[str, ...]:
    """What is installed, without importing any of it."""
    from importlib.metadata import entry_points

    return tuple(sorted({entry_point.name for entry_point in entry_points(group=namespace)}))


def driver_of_url(url: str) -> str:
    """The datastore driver a URL names by its scheme; ``etcd3s`` is etcd3 over TLS."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise PluginMissing(DATASTORES, url, names(DATASTORES))
    return "etcd3" if scheme == "etcd3s" else scheme


def _mismatch(namespace: str, target: Any) -> str:
    """Why a loaded object cannot serve in its namespace, or ''."""
    demanded = DEMANDED.get(namespace)
    if demanded is None:
        return ""
    if not (inspect.isclass(target) and issubclass(target, demanded)):
        return f"{target!r} is not a subclass of {demanded.__module__}.{demanded.__qualname__}"
    missing = sorted(getattr(target, "__abstractmethods__", ()))
    if missing:
        return f"{target.__qualname__} lacks {', '.join(missing)}"
    if namespace == INTEGRATIONS:
        return _api_mismatch(target)
    return ""


def _api_mismatch(target: Any) -> str:
    info = getattr(target, "info", None)
    if info is None:
        return f"{target.__qualname__} has no 'info'"
    if info.api_version != API_VERSION:
        return str(PluginIncompatible(info.name, info.api_version, API_VERSION))
    return ""


def _owners(namespace: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Name and version of the package behind each entry point, by its name and value.

    stevedore's cached entry points do not carry it, and a look reads all that is installed (10 ms).
    """
    from importlib.metadata import entry_points

    return {
        (each.name, each.value): (each.dist.name, each.dist.version)
        for each in reversed(tuple(entry_points(group=namespace)))
        if each.dist is not None
    }


def _owner(owners: dict[tuple[str, str], tuple[str, str]], entry_point: Any) -> tuple[str, str]:
    return owners.get((entry_point.name, entry_point.value), ("unknown", "unknown"))

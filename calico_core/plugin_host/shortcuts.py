"""Where the classes of a running node are, noted for a process that has time for one call only.

Looking through the entry points of all that is installed takes longer than an attach. So the node notes what it found
there, and with it when packages were last installed or removed: after that, its notes say nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from calico_core.model.record import Value
from calico_core.plugin_host.loader import LoadedPlugin, load_driver
from calico_core.plugin_host.namespaces import INTEGRATIONS


class Shortcuts(Value, frozen=True):
    """``installed``: see :func:`last_installed`. ``drivers``: namespace → name → "module:Class". ``integrations``:
    program → name and "module:Class"."""

    installed: dict[str, int] = msgspec.field(default_factory=dict)
    drivers: dict[str, dict[str, str]] = msgspec.field(default_factory=dict)
    integrations: dict[str, tuple[str, str]] = msgspec.field(default_factory=dict)

    def driver(self, namespace: str, name: str) -> Any:
        """The class behind one name. Raises what :func:`load_driver` raises, which is asked where nothing is noted."""
        found = _find(self.drivers.get(namespace, {}).get(name, ""))
        return load_driver(namespace, name) if found is None else found

    def integration(self, program: str) -> LoadedPlugin | None:
        """The one that takes calls of a program, if it is noted and still there."""
        name, where = self.integrations.get(program, ("", ""))
        found = _find(where)
        return None if found is None else LoadedPlugin(name, found, INTEGRATIONS, where)


def take_shortcuts(drivers: Mapping[str, Mapping[str, Any]], integrations: Iterable[LoadedPlugin]) -> Shortcuts:
    """``drivers``: namespace → name → class."""
    return Shortcuts(
        installed=last_installed(),
        drivers={
            namespace: {name: _place(found) for name, found in named.items()} for namespace, named in drivers.items()
        },
        integrations={
            program: (plugin.name, _place(plugin.target))
            for plugin in integrations
            for program in plugin.target.info.programs
        },
    )


def decode_shortcuts(text: bytes) -> Shortcuts:
    """Empty ones when they are not ours or of another installation than today's."""
    try:
        found = msgspec.json.decode(text, type=Shortcuts)
    except msgspec.DecodeError:
        return Shortcuts()
    return found if found.installed and found.installed == last_installed() else Shortcuts()


def last_installed() -> dict[str, int]:
    """The folders of this interpreter that packages are installed in, and when an entry of each came or went."""
    folders = {path for path in sys.path if path.endswith(("/site-packages", "/dist-packages"))}
    found: dict[str, int] = {}
    for folder in folders:
        try:
            found[folder] = os.stat(folder).st_mtime_ns  # noqa: PTH116 - no Path: start-up counts
        except OSError:
            continue
    return found


def _place(found: Any) -> str:
    return f"{found.__module__}:{found.__qualname__}"


def _find(where: str) -> Any:
    module, _, name = where.partition(":")
    try:
        return getattr(importlib.import_module(module), name) if name else None
    except Exception:  # whoever looks it up says what is wrong with it
        return None

"""Modules that are read when they are first used, for a process that has one call to answer.

Much of what a call imports it never touches: TLS and HTTP without Kubernetes, the start of programs without another
plugin for addresses. ``importlib.util.LazyLoader`` does not serve: who imports such a module looks at its ``__spec__``,
and that is enough for it to be read (seen with 3.11).
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import types
from typing import Any

_locks: dict[str, threading.RLock] = {}
_begun: set[str] = set()


class _Later(types.ModuleType):
    """Becomes an ordinary module with the first look at what is in it. Any thread."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if name.startswith("__") or spec is None or spec.loader is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with _locks[self.__name__]:
            if self.__name__ not in _begun:  # else it is another thread that has read it, or a circle of imports
                _begun.add(self.__name__)
                spec.loader.exec_module(self)
                self.__class__ = types.ModuleType  # type: ignore[assignment]
        return types.ModuleType.__getattribute__(self, name)


def postpone(*names: str) -> None:
    """What is there already stays as it is, and what cannot be found is left to its importer."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if name in sys.modules or spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        module.__class__ = _Later
        _locks[name] = threading.RLock()
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)

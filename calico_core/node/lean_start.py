"""Keeps a process for one call from loading what hardly any call uses.

Libraries import at their start what few of their functions need. Here such a module is loaded when somebody asks it
for something, and where its importer has a way without it, not at all. ``importlib.util.LazyLoader`` would do for
the first if CPython 3.11 did not ask a module for its specification at each import of it.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader  # it would bring importlib.resources

LATER = frozenset({
    *("asyncio", "google.protobuf.text_format", "grpc.aio", "http.client", "importlib.resources", "inspect", "json"),
    *("msgspec.inspect", "platform", "pprint", "shutil", "ssl", "subprocess", "tempfile", "traceback"),
})  # fmt: skip
"""A ``from`` import of a name in one of them asks at once, so these are such as others import whole."""
WITHOUT = (("hashlib", "_hashlib"), ("msgspec", "typing_extensions"))
"""Importer, and what it does without: the interpreter has digests of its own, and the 3.11 ``typing`` is enough."""

_loading = threading.RLock()


def begin() -> None:
    """Before anything else is imported, in a process that answers one call and ends."""
    gc.disable()  # it ends before there is garbage worth looking for
    sys.meta_path.insert(0, _Finder())
    if "platform" not in sys.modules:  # uuid asks for the one thing that is known
        vars(importlib.import_module("platform"))["system"] = lambda: os.uname().sysname
    if "importlib.resources" not in sys.modules:  # netaddr asks whether it has this, and uses it for makers of cards
        resources = importlib.import_module("importlib.resources")
        vars(resources)["files"] = lambda package: _loaded(resources).files(package)
    for importer, dispensable in WITHOUT:
        _import_without(importer, dispensable)


class _Finder:
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in LATER:
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is not None and found.loader is not None:
            found.loader = _Postponed(found.loader)  # type: ignore[assignment]  # all that the import system asks for
        return found


class _Postponed:
    """Stands in for the loader of a module until somebody asks the module for something."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader
        module.__class__ = _Later


class _Later(ModuleType):
    """A module whose code has not run yet."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system's own questions
            raise AttributeError(name)
        return getattr(_loaded(self), name)


class _Loading(ModuleType):
    """The same while its code runs: others wait, it itself finds what it has so far."""

    def __getattr__(self, name: str) -> Any:
        with _loading:
            if type(self) is _Loading:
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} yet")
        return getattr(self, name)


def _loaded(module: ModuleType) -> ModuleType:
    with _loading:
        spec = module.__spec__
        if type(module) is not _Later or spec is None or spec.loader is None:
            return module
        become: Callable[[type[ModuleType]], None] = partial(setattr, module, "__class__")
        become(_Loading)
        spec.loader.exec_module(module)
        become(ModuleType)
    return module


def _import_without(importer: str, dispensable: str) -> None:
    if dispensable in sys.modules:
        return
    sys.modules[dispensable] = None  # type: ignore[assignment]  # an import of it fails
    try:
        importlib.import_module(importer)
    finally:
        del sys.modules[dispensable]

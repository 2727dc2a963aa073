"""The API's objects in memory, kept up to date by a thread a kind.

Level-triggered: a thread lists, then follows the watch, and lists again whenever the watch cannot go on. While the API
is away the last state stays: nothing is taken for gone because nobody answers.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from calico_core.errors import CalicoError
from calico_core.log import get_logger
from calico_core.model.kubernetes import Metadata
from calico_kubernetes.api import KINDS, Api, HistoryGone, Kind
from calico_kubernetes.objects import Name, Snapshot

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 3.0
RELIST_S = 600.0
"""A watch that is over is followed by a list, if the last one is that old: what no watch tells, as that the API was
restored to an earlier state, is found then."""

log = get_logger(__name__)


class ApiCache:
    """``changed`` is called, in any of the threads, after each change, when everything has been listed once, and when
    the API serves a kind again."""

    def __init__(self, kubeconfig: str, changed: Callable[[], None]) -> None:
        self._kubeconfig = kubeconfig
        self._changed = changed
        self._lock = threading.Lock()
        self._objects: dict[str, dict[Name, Any]] = {}
        self._versions: dict[str, str] = {}
        self._listed: dict[str, float] = {}
        self._away: dict[str, float] = {}
        self._outdated: frozenset[str] = frozenset()
        self._watching: dict[str, Api] = {}
        self._stop = threading.Event()

    def start(self) -> None:
        for kind in KINDS:
            threading.Thread(target=self._follow, args=(kind,), name=f"kube-{kind.name}", daemon=True).start()

    def stop(self) -> None:
        """Nothing that the threads do is seen any more; they end with what they have begun."""
        with self._lock:
            self._stop.set()
            watching = list(self._watching.values())
        for api in watching:
            api.interrupt()

    def away_s(self) -> float:
        """How long the API has not served us, by the kind that misses it longest."""
        with self._lock:
            return time.monotonic() - min(self._away.values()) if self._away else 0.0

    def away(self) -> frozenset[str]:
        """The kinds that the API does not serve us, as far as we have noticed, from where we left off."""
        with self._lock:
            return self._outdated.union(self._away)

    def snapshot(self) -> Snapshot | None:
        """None while a kind has never been listed."""
        with self._lock:
            if len(self._objects) < len(KINDS):
                return None
            return Snapshot(**{kind.name: dict(self._objects[kind.name]) for kind in KINDS})

    def _follow(self, kind: Kind[Any]) -> None:
        wait_s = FIRST_WAIT_S
        while not self._stop.is_set():
            try:
                self._watch(kind)
                wait_s = FIRST_WAIT_S
            except HistoryGone:
                with self._lock:
                    self._outdated |= {kind.name}  # though the server agreed to the watch: it often tells only in there
                self._versions.pop(kind.name, None)
            except CalicoError as error:
                if self._misses(kind):  # once is enough until it is back
                    log.warning("kubernetes.away", kind=kind.name, reason=str(error))
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            except Exception:  # a thread that died would leave its kind stale for ever
                log.exception("kubernetes.watch_failed", kind=kind.name)
                self._misses(kind)
                self._versions.pop(kind.name, None)
                wait_s = LONGEST_WAIT_S
            # all kinds lose the server at once; let them not come back at once
            self._stop.wait(wait_s * random.uniform(0.5, 1.0))

    def _watch(self, kind: Kind[Any]) -> None:
        """On from the last version seen, or from a new list."""
        api = Api(self._kubeconfig)
        try:
            if kind.name not in self._versions or time.monotonic() - self._listed[kind.name] > RELIST_S:
                self._versions[kind.name] = self._list(api, kind)
            happened = api.watch(kind, self._versions[kind.name])
            with self._lock:
                was_away = self._away.pop(kind.name, None) is not None or kind.name in self._outdated
                self._outdated -= {kind.name}
                self._watching[kind.name] = api
                if self._stop.is_set():  # it came too late to interrupt this one
                    return
            if was_away:
                self._changed()  # what waited for it
            for event in happened:
                if self._stop.is_set():
                    break
                self._take(kind, event.type, event.item)
                # also when the watch breaks: what was seen once must not come again, older than what is held
                self._versions[kind.name] = event.item.metadata.resource_version
        finally:
            with self._lock:
                self._watching.pop(kind.name, None)
            api.close()

    def _misses(self, kind: Kind[Any]) -> bool:
        """Whether the API is away for it from now on; it may have been before, and we may have left it ourselves."""
        with self._lock:
            is_new = kind.name not in self._away and not self._stop.is_set()
            self._away.setdefault(kind.name, time.monotonic())
            return is_new

    def _list(self, api: Api, kind: Kind[Any]) -> str:
        items, version = api.list(kind)
        with self._lock:
            self._objects[kind.name] = {_name(item.metadata): item for item in items}
            self._listed[kind.name] = time.monotonic()
        log.info("kubernetes.listed", kind=kind.name, count=len(items))
        self._changed()
        return version

    def _take(self, kind: Kind[Any], what: str, item: Any) -> None:
        if what == "bookmark":
            return
        name = _name(item.metadata)
        with self._lock:
            if what == "deleted":
                self._objects[kind.name].pop(name, None)
            else:
                self._objects[kind.name][name] = item
        self._changed()


def _name(metadata: Metadata) -> Name:
    return metadata.namespace, metadata.name

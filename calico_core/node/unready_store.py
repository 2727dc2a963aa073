"""A node that starts and finds a datastore that is not ready, and that lacks most of what was in force here: it writes
nothing into it, reads no settings from it and leaves the kernel as it is, until the records are back, somebody says
that the store is ready, or the loss is confirmed. A new store, or a host that knew nothing, is begun with at once.
Source: felix specification 8, "Datastore rebuilt".
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import msgspec

from calico_core.errors import DatastoreError
from calico_core.interfaces.datastore import Records
from calico_core.interfaces.integration import Call, CallReply
from calico_core.log import get_logger
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import V1, ReadyKey, WorkloadEndpointKey
from calico_core.node.remembered import Remembered
from calico_core.node.removal_guard import LASTING

log = get_logger(__name__)

_LOOK_EVERY_S = 2.0


class UnreadyStore:
    """``confirm_after_s``: as of ``RemovalGuard``. :attr:`reason` and ``answer`` are for any thread."""

    def __init__(
        self,
        records: Records,
        host: str,
        remembered: Remembered,
        *,
        confirm_after_s: float,
        look_every_s: float = _LOOK_EVERY_S,
    ) -> None:
        self._records, self._host, self._remembered = records, host, remembered
        self._confirm_after_s, self._look_every_s = confirm_after_s, look_every_s
        self._confirmed = threading.Event()
        self.reason = ""

    def wait(self, stop: threading.Event, on_wait: Callable[[str], object] = lambda _reason: None) -> bool:
        """False when stopped. ``on_wait`` hears the reason when there is one to wait for, and '' when it is over."""
        since = time.monotonic()
        while not stop.is_set():
            try:
                lack = self._lack()
            except DatastoreError as error:
                log.debug("store.away", reason=str(error))
                since = time.monotonic()  # only what it says counts
                stop.wait(self._look_every_s)
                continue
            is_believed = 0 < self._confirm_after_s <= time.monotonic() - since
            if lack and (self._confirmed.is_set() or is_believed):
                self._remembered.forget()
                lack = ""
            if not lack:
                self._tell("", on_wait)
                return True
            self._tell(f"{ReadyKey().path} is not true, and the datastore has {lack}", on_wait)
            self._confirmed.wait(self._look_every_s)
        return False

    def answer(self, call: Call) -> CallReply:
        """To ``calicoctl``, while the node waits."""
        if call.stdin.split() == [b"confirm-removals"]:
            self._confirmed.set()
            return CallReply(stdout=msgspec.json.encode({"frozen_because": self.reason}))
        way_out = "the kernel keeps what it has until the records are back, or: calicoctl node confirm-removals"
        return CallReply(status=1, stderr=f"the node is starting: {self.reason}; {way_out}\n".encode())

    def _tell(self, reason: str, on_wait: Callable[[str], object]) -> None:
        before, self.reason = self.reason, reason
        if reason and not before:
            log.error("removals.frozen", reason=reason)
        elif before and not reason:
            log.warning("removals.released", reason=before)
        if reason != before:
            on_wait(reason)

    def _lack(self) -> str:
        """What is missed, or ''."""
        ready = self._records.store.get(ReadyKey().path)
        if (ready is not None and ready.value == b"true") or not self._remembered.lost(0, {}):
            return ""
        keys = [key for entry in self._records.store.list(V1).entries if (key := parse_key(entry.key)) is not None]
        endpoints = sum(isinstance(key, WorkloadEndpointKey) and key.host == self._host for key in keys)
        counts = Counter(LASTING[type(key)] for key in keys if type(key) in LASTING)
        return self._remembered.lost(endpoints, counts)

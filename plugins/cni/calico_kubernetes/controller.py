"""The policy controller: brings the datastore's records to what the Kubernetes API says, again and again.

A pass computes all that is wanted from one snapshot of the API and writes what differs. What caused the pass does not
matter, so nothing is lost with an event, and a record that somebody else changed is put right.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator

from calico_core.errors import CalicoError, Conflict
from calico_core.interfaces.datastore import Datastore
from calico_core.log import get_logger
from calico_kubernetes.api import Api
from calico_kubernetes.cache import ApiCache
from calico_kubernetes.desired import Change, changes
from calico_kubernetes.election import KEY, TTL_S, Leadership, is_vacant, try_win
from calico_kubernetes.mirror import Mirror

BATCH = 30
"""Writes in one transaction; each takes a compare and an operation, and the leader's compare comes on top."""
BATCH_BYTES = 1_000_000
"""etcd takes requests of 1.5 MiB; one record may have as much as this alone."""
GATHER_S = 0.02
"""So much later than the first change a pass begins: what belongs together often comes together."""
SHARE = 4
"""After a pass, so many times its length belongs to the rest of the node: one over 10,000 pods takes a tenth of a
second."""
CANDIDATE_S = 2.0
"""On average: as long as none leads every node asks the API, and not all of them at once."""
AWAY_S = 30.0
"""A leader that has been without the API for so long lets another try."""

log = get_logger(__name__)


class PolicyController:
    """One a node; all but one of a cluster wait."""

    def __init__(self, store: Datastore, host: str, kubeconfig: str) -> None:
        self._store = store
        self._host = host
        self._kubeconfig = kubeconfig
        self._can_serve = True

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                if is_vacant(self._store) and self._reaches_api():
                    leadership = try_win(self._store, self._host)
                    if leadership is not None:
                        log.info("controller.elected", host=self._host)
                        self._lead(leadership, stop)
            except CalicoError as error:
                log.warning("controller.interrupted", reason=str(error))
            except Exception:  # without a controller the cluster's policy would stand still
                log.exception("controller.failed")
            stop.wait(CANDIDATE_S * random.uniform(0.5, 1.5))

    def _reaches_api(self) -> bool:
        """Who does not must not keep the place from those who do."""
        try:
            api = Api(self._kubeconfig)
            try:
                api.check_access()
            finally:
                api.close()
        except CalicoError as error:
            if self._can_serve:  # once is enough until it can again
                log.warning("controller.cannot_stand", reason=str(error))
            self._can_serve = False
        else:
            self._can_serve = True
        return self._can_serve

    def _lead(self, leadership: Leadership, stop: threading.Event) -> None:
        """Until the lease is lost or the node stops."""
        changed = threading.Event()
        cache = ApiCache(self._kubeconfig, changed.set)
        mirror = Mirror(self._store, changed.set)
        cache.start()
        mirror.start()
        pause_s = GATHER_S
        try:
            while not stop.is_set() and cache.away_s() < AWAY_S and leadership.renew():
                if not changed.wait(TTL_S / 8):
                    continue
                stop.wait(pause_s)
                changed.clear()
                started = time.monotonic()
                self._reconcile(leadership, cache, mirror)
                pause_s = min(max(GATHER_S, SHARE * (time.monotonic() - started)), TTL_S / 8)
            log.info("controller.resigned", is_stopping=stop.is_set(), away_s=round(cache.away_s(), 1))
        finally:
            cache.stop()
            mirror.stop()
            leadership.resign()

    def _reconcile(self, leadership: Leadership, cache: ApiCache, mirror: Mirror) -> None:
        """:raises Conflict: the leadership is lost."""
        away = cache.away()  # first: what comes back afterwards makes another pass
        snapshot, observed = cache.snapshot(), mirror.records()
        if snapshot is None or observed is None:
            return
        done = 0
        for batch in _batches(changes(snapshot, observed, away=away)):
            done += self._write(batch, leadership, mirror)
            if not leadership.renew():
                raise Conflict(KEY, None)
        if done:
            log.info("controller.written", records=done)

    def _write(self, batch: list[Change], leadership: Leadership, mirror: Mirror) -> int:
        """How many are done. One that another writer was faster with comes again with the mirror's next change."""
        preconditions = [leadership.precondition, *(change.precondition for change in batch)]
        result = self._store.transact(preconditions, [change.operation for change in batch], [KEY])
        if result.committed:
            mirror.note(batch, result.revision)
            return len(batch)
        leader = result.current[0]
        if leader is None or leader.mod_revision != leadership.precondition.mod_revision:
            raise Conflict(KEY, leader)
        if len(batch) == 1:
            log.info("controller.outrun", key=batch[0].key)
            return 0
        return sum(self._write([change], leadership, mirror) for change in batch)


def _batches(each: Iterable[Change]) -> Iterator[list[Change]]:
    batch: list[Change] = []
    size = 0
    for change in each:
        if batch and (len(batch) == BATCH or size + change.size_bytes > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(change)
        size += change.size_bytes
    if batch:
        yield batch

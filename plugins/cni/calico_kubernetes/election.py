"""One node writes for all: the one that holds a key under a lease.

The lease decides who works, not who is right: every write also demands that the key is still the one that was won, so
that a node which was stopped for a while and has not noticed cannot write.
"""

from __future__ import annotations

import time

from calico_core.errors import CalicoError, KeyExists
from calico_core.interfaces.datastore import Compare, Datastore, Lease
from calico_core.log import get_logger
from calico_core.model.keys import PolicyControllerKey

KEY = PolicyControllerKey().path
TTL_S = 10.0

log = get_logger(__name__)


class Leadership:
    """From a won election until :meth:`resign` or a lost lease."""

    def __init__(self, store: Datastore, lease: Lease, revision: int) -> None:
        self._store = store
        self._lease = lease
        self._renewed = time.monotonic()
        self.precondition = Compare(KEY, revision)

    def renew(self) -> bool:
        """Call it often; the store is asked now and then. False: lost."""
        if time.monotonic() - self._renewed < TTL_S / 4:
            return True
        if not self._lease.keep_alive():
            return False
        self._renewed = time.monotonic()
        return True

    def resign(self) -> None:
        try:
            self._lease.revoke()
        except CalicoError as error:  # it ends by itself
            log.info("controller.lease_left", reason=str(error))


def is_vacant(store: Datastore) -> bool:
    return store.get(KEY) is None


def try_win(store: Datastore, host: str) -> Leadership | None:
    """None: another node was faster."""
    lease = store.lease(TTL_S)
    try:
        revision = store.create(KEY, host.encode(), lease=lease.id)
    except KeyExists:
        lease.revoke()
        return None
    except CalicoError:
        # whether it was created is not known; with the lease it goes
        lease.revoke()
        raise
    return Leadership(store, lease, revision)

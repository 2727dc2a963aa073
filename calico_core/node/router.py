"""Journey C: what the datastore says of hosts, peers, pools and blocks becomes the routing daemon's configuration.

One thread. The first change is taken at once, later ones at most once a second, so that a thousand joining hosts do
not mean a thousand reloads. Nothing is configured from half a view, nor before the agent has begun: until then the
daemon goes on with what an earlier life of the node told it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from calico_core.datastore.syncer import SyncBatch, Syncer, SyncStatus
from calico_core.errors import CalicoError
from calico_core.interfaces.datastore import Datastore
from calico_core.interfaces.routing import Routing, RoutingState
from calico_core.log import get_logger
from calico_core.model.keys import AFFINITIES, BGP, POOLS
from calico_core.node.busy import Busy
from calico_core.node.held_deletions import HeldDeletions
from calico_core.node.mailbox import Mailbox
from calico_core.routing.peerings import PeeringTable

log = get_logger(__name__)

_MIN_INTERVAL_S = 1.0
_RETRY_S = 5.0
_CHECK_S = 10.0
_ASK_AGENT_S = 0.1
"""A start waits that long at most beyond the agent's own."""


class Router:
    """Feeds a :class:`Routing` driver. ``trusts_store``: the agent's word on the datastore; without it no peer, block
    or pool goes, and nothing is begun with."""

    def __init__(
        self, *, store: Datastore, host: str, routing: Routing, trusts_store: Callable[[], bool] = lambda: True
    ) -> None:
        self._routing = routing
        self._trusts_store = trusts_store
        self._deletions = HeldDeletions(trusts_store)
        self._table = PeeringTable(host)
        self._mailbox: Mailbox[SyncBatch] = Mailbox()
        self._syncer = Syncer(store, (BGP, POOLS, f"{AFFINITIES}{host}/"), self._mailbox.post, name="sync-routing")
        self._busy = Busy()
        self._thread = threading.Thread(target=self._run, name="routing", daemon=True)
        self._stopping = threading.Event()
        self._is_in_sync = self._has_begun = False
        self._configured: RoutingState | None = None
        self.last_error = ""

    def start(self) -> None:
        self._thread.start()
        self._syncer.start()

    def stop(self) -> None:
        self._stopping.set()
        self._syncer.stop()
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(10)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self._syncer.is_alive

    @property
    def busy_s(self) -> float:
        """How long the daemon is being configured already; 0: nothing goes on."""
        return self._busy.seconds

    def _run(self) -> None:
        check_at = time.monotonic() + _ASK_AGENT_S
        while not self._mailbox.is_closed:
            at = min(check_at, self._deletions.next_look() or check_at)
            for batch in self._mailbox.take(max(0.0, at - time.monotonic())):
                self._table.apply(self._deletions.pass_on(batch.updates, time.monotonic()))
                self._is_in_sync = self._is_in_sync or batch.status is SyncStatus.IN_SYNC
            self._table.apply(self._deletions.look(time.monotonic()))
            self._has_begun = self._has_begun or (self._is_in_sync and self._trusts_store())
            state = self._table.state() if self._has_begun else None
            is_new = state != self._configured
            is_due = time.monotonic() >= check_at
            if is_due:
                check_at = time.monotonic() + (_CHECK_S if self._has_begun else _ASK_AGENT_S)
            if state is None or not (is_new or is_due):
                continue
            # An equal state again is the driver's chance to find its daemon gone and start it.
            with self._busy.turn():
                check_at = time.monotonic() + (_CHECK_S if self._configure(state) else _RETRY_S)
            if is_new:
                self._stopping.wait(_MIN_INTERVAL_S)

    def _configure(self, state: RoutingState) -> bool:
        try:
            self._routing.configure(state)
        except CalicoError as error:
            self.last_error = str(error)
            log.error("routing.configure_failed", reason=str(error))
            return False
        except Exception as error:  # the driver may come from a third party
            self.last_error = str(error)
            log.exception("routing.configure_failed")
            return False
        if state != self._configured:
            log.info("routing.configured", peers=len(state.peers), blocks=len(state.blocks), pools=len(state.pools))
        self._configured, self.last_error = state, ""
        return True

"""What the engine takes in one pass: all that has gathered while it rested, unless somebody waits."""

from __future__ import annotations

import time

from calico_core.datastore.syncer import SyncBatch
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.workloads import InterfaceEvent
from calico_core.node.agent_state import HostAddresses, Item
from calico_core.node.flow_cutter import LookFailed
from calico_core.node.mailbox import Mailbox

_REST_S = 0.02
"""Between two passes that nobody waits for. Felix takes what a tick of 10 ms has gathered."""


class Gathering:
    """The first change after a quiet time goes to the kernel at once; of many a second several go together, and
    attaches find the interpreter free. ``host``: attaches are to endpoints of it."""

    def __init__(self, mailbox: Mailbox[Item], host: str) -> None:
        self._mailbox, self._host = mailbox, host
        self._rests_until = 0.0

    def take(self, timeout_s: float | None) -> list[Item]:
        """Empty when the time is over or the mailbox is closed."""
        items = self._mailbox.take(timeout_s)
        while items and not any(map(self._is_urgent, items)):
            left = self._rests_until - time.monotonic()
            if left <= 0 or self._mailbox.is_closed:
                break
            items += self._mailbox.take(left)
        return items

    def rest(self) -> None:
        """A pass is over."""
        self._rests_until = time.monotonic() + _REST_S

    def _is_urgent(self, item: Item) -> bool:
        if not isinstance(item, SyncBatch):
            return not isinstance(item, HostAddresses | InterfaceEvent | LookFailed)
        if item.is_snapshot or not item.updates:
            return True
        return any(isinstance(each.key, WorkloadEndpointKey) and each.key.host == self._host for each in item.updates)

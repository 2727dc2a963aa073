"""Watches over etcd: one gRPC stream for all of a datastore's watches, one thread that reads it.

Not the SDK's watcher: that one calls back per event, waits for each watch to be confirmed, and drops the compaction
revision. What etcd promises and we rely on: watches on a stream are created in the order asked, and a response
without ``fragment`` never splits a revision.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import grpc
from grpc import _common
from pyetcd import etcdrpc

from calico_core.datastore.checks import prefix_end
from calico_core.datastore.etcd3_channel import describe
from calico_core.interfaces.datastore import Batch, CompactedAway, Event, Lost, Progress, Watch
from calico_core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from calico_core.datastore.etcd3_channel import Member
    from calico_core.interfaces.datastore import WatchMessage

log = get_logger(__name__)

# gRPC wakes who waits for a message ten times a second, so that the main thread comes to its signal handlers (its issue
# 19464). Only the thread of a stream waits so here; without this it is half of what an idle node costs.
_common.MAXIMUM_WAIT_TIMEOUT = 10.0

BUFFERED_EVENTS = 50_000
"""What a reader may fall behind before its watch is given up."""
ASK_PROGRESS_AFTER_S = 60.0
"""A reader that heard nothing for so long makes the stream ask how far the store is: etcd tells by itself every 10
minutes only, and compaction may be faster."""
_NO_WATCH_ID = -1
"""Also what etcd answers a request for progress under: it is meant for every watch of the stream."""


class Etcd3Watch(Watch):
    """The buffer between the stream's thread and the reader."""

    def __init__(
        self,
        prefix: str,
        cancel: Callable[[Etcd3Watch], None],
        *,
        after: int = 0,
        on_idle: Callable[[], None] | None = None,
        idle_s: float = ASK_PROGRESS_AFTER_S,
        limit: int = BUFFERED_EVENTS,
    ) -> None:
        self.prefix, self.after = prefix, after
        self.watch_id = _NO_WATCH_ID
        self._cancel, self._limit = cancel, limit
        self._on_idle, self._idle_s = on_idle, idle_s
        self._heard_at = time.monotonic()
        self._changed = threading.Condition()
        self._messages: deque[WatchMessage] = deque()
        self._events = 0
        self._over = False  # nothing is added any more
        self._closed = False
        self._bell: Callable[[], None] = lambda: None

    def ring(self, bell: Callable[[], None]) -> bool:
        self._bell = bell
        bell()  # for what came before
        return True

    def next(self, timeout_s: float) -> WatchMessage | None:
        with self._changed:
            self._changed.wait_for(lambda: self._messages or self._closed or self._over, timeout_s)
            if self._closed:
                return None
            if self._messages:
                message = self._messages.popleft()
                if isinstance(message, Batch):
                    self._events -= len(message.events)
                return message
            is_idle = not self._over and time.monotonic() - self._heard_at > self._idle_s
        if is_idle and self._on_idle is not None:
            self._on_idle()
        return None

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = self._over = True
            self._messages.clear()
            self._changed.notify_all()
        self._cancel(self)

    # --- called by the stream ------------------------------------------------------------------------------

    def deliver(self, messages: Iterable[WatchMessage]) -> bool:
        """False when the reader is too far behind, or gone: cancel the watch."""
        with self._changed:
            if self._over:
                return False
            self._heard_at = time.monotonic()
            for message in messages:
                self._events += len(message.events) if isinstance(message, Batch) else 0
                self._messages.append(message)
            if self._messages and isinstance(self._messages[-1], CompactedAway):
                self._over = True
            elif self._events > self._limit:
                self._messages.clear()
                self._messages.append(Lost(f"the reader fell {self._events} events behind"))
                self._over = True
            self._changed.notify_all()
            is_wanted = not self._over
        self._bell()
        return is_wanted

    @property
    def is_over(self) -> bool:
        return self._over

    def end(self, message: WatchMessage) -> None:
        """Say why it is over, after what was already delivered."""
        with self._changed:
            if not self._over:
                self._messages.append(message)
                self._over = True
                self._changed.notify_all()
        self._bell()


class WatchStream:
    """One stream to one member. ``on_failure`` hears why it broke; a broken stream is not mended but replaced."""

    def __init__(
        self,
        member: Member,
        metadata: Any,
        on_failure: Callable[[Member, str], None],
        *,
        idle_s: float = ASK_PROGRESS_AFTER_S,
    ) -> None:
        self.member = member
        self.is_broken = False
        self._idle_s = idle_s
        self._asked_progress_at = float("-inf")
        self._progress_due: tuple[int, tuple[Etcd3Watch, ...]] = (0, ())
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._asked: deque[Etcd3Watch] = deque()  # not yet confirmed, in order
        self._running: dict[int, Etcd3Watch] = {}
        # A member cut off from its leader ends the stream instead of going quiet.
        with_leader = (("hasleader", "true"), *(metadata or ()))
        self._call = member.watch.Watch(iter(self._requests.get, None), metadata=with_leader)
        self._thread = threading.Thread(target=self._run, name="etcd-watch", daemon=True)
        self._thread.start()

    def watch(self, prefix: str, after: int) -> Etcd3Watch | None:
        """None when the stream has broken.

        It is asked for from ``after`` itself, whose events are dropped here. Asked from the revision behind it, etcd
        would not notice a compaction at just that revision, which takes a deletion with it without a word; seen with
        3.4.23. The price is that etcd takes up to 100 ms before the first event."""
        request = etcdrpc.WatchCreateRequest(
            key=prefix.encode(),
            range_end=prefix_end(prefix).encode(),
            start_revision=max(after, 1),
            prev_kv=True,
            progress_notify=True,
        )
        watch = Etcd3Watch(prefix, self._cancel, after=after, on_idle=self._ask_progress, idle_s=self._idle_s)
        with self._lock:
            if self.is_broken:
                return None
            self._asked.append(watch)
            self._requests.put(etcdrpc.WatchRequest(create_request=request))
        return watch

    def close(self, reason: str = "closed") -> None:
        self._break(reason)
        self._call.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join(5)

    # --- inside --------------------------------------------------------------------------------------------

    def _cancel(self, watch: Etcd3Watch) -> None:
        """A watch not yet confirmed is cancelled by the first response it gets."""
        with self._lock:
            if self._running.pop(watch.watch_id, None) is not None:
                self._request_cancel(watch.watch_id)

    def _request_cancel(self, watch_id: int) -> None:
        self._requests.put(etcdrpc.WatchRequest(cancel_request=etcdrpc.WatchCancelRequest(watch_id=watch_id)))

    def _run(self) -> None:
        reason = "the server ended the stream"
        try:
            for response in self._call:
                self._handle(response)
        except grpc.RpcError as error:
            reason = describe(error)
        except Exception as error:  # the thread's outer edge: its watches must not wait for ever
            log.exception("datastore.watch-stream-failed", endpoint=self.member.name)
            reason = repr(error)
            self._call.cancel()
        was_broken = self.is_broken
        self._break(reason)
        if not was_broken:
            self._on_failure(self.member, reason)

    def _break(self, reason: str) -> None:
        with self._lock:
            self.is_broken = True
            watches = [*self._asked, *self._running.values()]
            self._asked.clear()
            self._running.clear()
            self._requests.put(None)  # ends gRPC's own thread for the requests
        for watch in watches:
            watch.end(Lost(f"{self.member.name}: {reason}"))

    def _ask_progress(self) -> None:
        with self._lock:
            now = time.monotonic()
            if self.is_broken or now - self._asked_progress_at < self._idle_s:
                return
            self._asked_progress_at = now
            self._requests.put(etcdrpc.WatchRequest(progress_request=etcdrpc.WatchProgressRequest()))

    def _take_progress(self, revision: int) -> None:
        """Pass on the answer before this one. Up to 3.4.24 and 3.5.7 etcd answers at once, while events up to that
        very revision may still queue (etcd issue 15220). An interval later they have been sent, or keep-alive, which
        is quicker, has ended the stream."""
        with self._lock:
            due, watches = self._progress_due
            self._progress_due = (revision, tuple(self._running.values()))
        for watch in watches:
            watch.deliver([Progress(due)])

    def _handle(self, response: Any) -> None:
        if response.watch_id == _NO_WATCH_ID and not (response.created or response.canceled or response.events):
            self._take_progress(response.header.revision)
            return
        with self._lock:
            if response.created and self._asked:
                watch: Etcd3Watch | None = self._asked.popleft()
                assert watch is not None
                watch.watch_id = response.watch_id
                self._running[response.watch_id] = watch
                if watch.is_over:  # closed before it was confirmed
                    self._request_cancel(response.watch_id)
            else:
                watch = self._running.get(response.watch_id)
            if watch is None:
                return
            if response.canceled:
                self._running.pop(response.watch_id, None)
        if response.canceled:
            watch.end(_why(response))
            return
        messages = _messages(response, watch.after)
        if not watch.deliver(messages):
            self._cancel(watch)


def _why(response: Any) -> WatchMessage:
    if response.compact_revision:
        return CompactedAway(response.compact_revision)
    return Lost(response.cancel_reason or "cancelled by the server")


def _messages(response: Any, after: int) -> list[WatchMessage]:
    if not response.events:
        return [] if response.created else [Progress(response.header.revision)]
    batches: dict[int, list[Event]] = {}
    for event in response.events:
        entry = event.kv
        if entry.mod_revision <= after:
            continue
        is_put = event.type == event.PUT
        has_previous = event.HasField("prev_kv")
        if not has_previous and (not is_put or entry.create_revision != entry.mod_revision):
            # Compaction took the previous value, without which a deletion cannot be told from nothing.
            return [*_batches(batches), CompactedAway(entry.mod_revision)]
        batches.setdefault(entry.mod_revision, []).append(
            Event(
                entry.key.decode(errors="replace"),
                entry.value if is_put else None,
                event.prev_kv.value if has_previous else None,
                entry.mod_revision,
            )
        )
    return _batches(batches)


def _batches(events: dict[int, list[Event]]) -> list[WatchMessage]:
    return [Batch(revision, tuple(events[revision])) for revision in sorted(events)]

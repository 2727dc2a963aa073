"""What was denied lately, for people who ask through the node's socket.

The kernel is listened to only while somebody asks: each packet wakes and decodes, which under an attack nobody wants to
pay for nothing. Who asks again with the cursor of the last answer misses nothing that is still in the ring,
and is told how much went over its edge.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from calico_core.errors import CalicoError
from calico_core.interfaces.dataplane import Dataplane, DeniedPacket
from calico_core.log import get_logger

_RING = 2000
_LONGEST_WAIT_S = 5.0
_MOST_WAITING = 4
"""More would hold up the calls of orchestrators; they are answered at once and ask again."""
_UNHEARD_S = 20.0
"""So long after the last question the kernel is not listened to any more."""

log = get_logger(__name__)


class DeniedLog:
    """Safe for several threads. ``close`` before the dataplane is."""

    def __init__(self, dataplane: Dataplane, *, unheard_s: float = _UNHEARD_S) -> None:
        self._dataplane, self._unheard_s = dataplane, unheard_s
        self._condition = threading.Condition()
        self._watching = threading.Lock()
        self._ring: deque[DeniedPacket] = deque(maxlen=_RING)
        self._count = 0  # how many were heard in all; the cursor of the next one
        self._waiting = 0
        self._asked_at = 0.0
        self._stop: Callable[[], None] | None = None
        self._timer: threading.Timer | None = None
        self._is_closed = False

    @property
    def is_listening(self) -> bool:
        return self._stop is not None

    def after(self, cursor: int | None, wait_s: float) -> dict[str, Any]:
        """Packets since ``cursor`` (None: from now on), after at most ``wait_s`` if there are none. JSON-ready;
        ``missed``: how many the ring has lost since. Raises ``CalicoError`` when the kernel cannot be listened to."""
        self._listen()
        with self._condition:
            start = self._count if cursor is None or cursor > self._count else max(0, cursor)
            if start == self._count and not self._is_closed and self._waiting < _MOST_WAITING:
                self._waiting += 1
                self._condition.wait(min(max(wait_s, 0.0), _LONGEST_WAIT_S))
                self._waiting -= 1
            oldest = self._count - len(self._ring)
            packets = list(islice(self._ring, max(0, start - oldest), None))
            return {
                "cursor": self._count,
                "missed": max(0, oldest - start),
                "packets": [_plain(packet) for packet in packets],
            }

    def close(self) -> None:
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
        self._end()

    # --- listening -----------------------------------------------------------------------------------

    def _listen(self) -> None:
        with self._watching:
            self._asked_at = time.monotonic()
            if self._stop is not None or self._is_closed:
                return
            self._stop = self._dataplane.watch_denied(self._take)
            log.info("denied.listening")
            self._look_again(self._unheard_s)

    def _take(self, packet: DeniedPacket) -> None:
        with self._condition:
            self._ring.append(packet)
            self._count += 1
            self._condition.notify_all()

    def _look_again(self, in_s: float) -> None:
        self._timer = threading.Timer(in_s, self._end_if_unheard)
        self._timer.daemon = True
        self._timer.start()

    def _end_if_unheard(self) -> None:
        with self._watching:
            if self._stop is None or self._is_closed:
                return
            left = self._asked_at + self._unheard_s - time.monotonic()
            if left > 0:
                self._look_again(left)
                return
            stop, self._stop, self._timer = self._stop, None, None
        _call(stop)

    def _end(self) -> None:
        with self._watching:
            stop, self._stop = self._stop, None
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if stop is not None:
            _call(stop)


def _call(stop: Callable[[], None]) -> None:
    """Outside of the lock: it waits for the reader's thread."""
    try:
        stop()
    except CalicoError as error:
        log.warning("denied.not_stopped", reason=str(error))
    log.info("denied.not_listening")


def _plain(packet: DeniedPacket) -> dict[str, Any]:
    origin = packet.origin
    return {
        "time": packet.time,
        "protocol": packet.protocol,
        "source": str(packet.src),
        "source_port": packet.src_port,
        "destination": str(packet.dst),
        "port": packet.dst_port,
        "icmp": packet.icmp,
        "length_bytes": packet.length_bytes,
        "in_interface": packet.in_interface,
        "out_interface": packet.out_interface,
        "reason": origin.reason,
        "direction": origin.direction,
        "tier": origin.tier,
        "rules": origin.rules,
        "rule": origin.rule,
    }


def parse_question(words: Iterator[str]) -> tuple[int | None, float]:
    """``[CURSOR|now [WAIT_S]]``. Raises ``ValueError``."""
    cursor, wait_s = next(words, "now"), next(words, "0")
    return (None if cursor == "now" else int(cursor)), float(wait_s)

"""The stream of denied packets: one reader of the group for all who listen, none while nobody does."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from calico_core.dataplane.denials import PREFIX, SNAPSHOT_BYTES
from calico_core.interfaces.dataplane import DenialOrigin, DeniedPacket

if TYPE_CHECKING:
    from collections.abc import Callable

    from calico_core.dataplane.denials import Origins
    from calico_core.dataplane.linux.nflog import LoggedPacket, NflogReader

#: For packets of a rule that was there before this process and is not wanted any more.
GONE = DenialOrigin(reason="a rule that is gone")


class DeniedPackets:
    """Safe for several threads. ``group`` 0: nothing is told, nobody is called."""

    def __init__(self, group: int, origins: Origins, namespace_fd: int | None = None) -> None:
        self._group, self._origins, self._namespace_fd = group, origins, namespace_fd
        self._lock = threading.Lock()
        self._callbacks: tuple[Callable[[DeniedPacket], None], ...] = ()
        self._reader: NflogReader | None = None

    def watch(self, callback: Callable[[DeniedPacket], None]) -> Callable[[], None]:
        """Call back in the reader's thread. Gives what stops it.

        :raises KernelRefused: another program reads the group.
        """

        def listener(packet: DeniedPacket) -> None:
            callback(packet)

        def stop() -> None:
            with self._lock:
                self._callbacks = tuple(each for each in self._callbacks if each is not listener)
                idle, self._reader = (self._reader, None) if not self._callbacks else (None, self._reader)
            if idle is not None:
                idle.stop()

        if not self._group:
            return lambda: None
        with self._lock:
            if self._reader is None:
                from calico_core.dataplane.linux.nflog import NflogReader

                self._reader = NflogReader(
                    self._group, self._take, snapshot_bytes=SNAPSHOT_BYTES, namespace_fd=self._namespace_fd
                )
            self._callbacks = (*self._callbacks, listener)
        return stop

    def close(self) -> None:
        with self._lock:
            self._callbacks, reader, self._reader = (), self._reader, None
        if reader is not None:
            reader.stop()

    def _take(self, packet: LoggedPacket) -> None:
        origin = self._origins.find(packet.prefix)
        if origin is None:
            if not packet.prefix.startswith(PREFIX):
                return  # somebody else's rule tells the same group
            origin = GONE
        src, dst, protocol, src_port, dst_port, icmp, length_bytes = packet.headers
        denied = DeniedPacket(
            origin=origin,
            time=packet.time,
            in_interface=packet.in_interface,
            out_interface=packet.out_interface,
            src=src,
            dst=dst,
            protocol=protocol,
            src_port=src_port,
            dst_port=dst_port,
            icmp=icmp,
            length_bytes=length_bytes,
        )
        for callback in self._callbacks:
            callback(denied)

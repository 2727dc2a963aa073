"""A request whose sender the kernel keeps longer than the change takes: one thread sends, another goes on at the
kernel's word that it is done.

With NLM_F_ECHO the kernel gives the notification of a change to the socket that asked for it (netlink(7)), for a
deleted link since 6.2. An older kernel only acknowledges, at the end.
"""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING

from calico_core.dataplane.linux.netlink import (
    HEADER,
    NLM_F_ACK,
    NLM_F_ECHO,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    parse_error,
    parse_messages,
    refused,
)
from calico_core.errors import KernelRefused

if TYPE_CHECKING:
    from calico_core.dataplane.linux.netlink import NetlinkSocket, Request

_WAIT_S = 60.0


class Parting:
    """One request on a socket that serves nothing else meanwhile."""

    def __init__(self, netlink_socket: NetlinkSocket, request: Request) -> None:
        self._socket = netlink_socket
        self._request = request
        self._sequence = netlink_socket.next_sequence()
        self._reading = threading.Lock()
        self._is_done = False
        self._is_acknowledged = False
        self._error: KernelRefused | None = None

    def send(self) -> bool:
        """Returns when the kernel has finished; whether the socket may be used for something else now."""
        body, flags = self._request.body, self._request.flags | NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO
        try:
            self._socket.send(
                HEADER.pack(16 + len(body), self._request.type, flags, self._sequence, 0) + body,
                self._request.operation,
            )
        except KernelRefused as error:
            self._error = error
            return False
        with self._reading:
            while not self._is_acknowledged and self._error is None:
                self._read()
        return self._is_acknowledged

    def wait(self) -> KernelRefused | None:
        """Returns when the change is made, or the kernel has refused it."""
        deadline = time.monotonic() + _WAIT_S
        with self._reading:
            while not self._is_done and self._error is None:
                self._read(deadline)
        return self._error

    def _read(self, deadline: float = 0.0) -> None:
        """The next datagram; a silence is an error from the deadline on."""
        try:
            data = self._socket.receive(self._request.operation)
        except KernelRefused as error:
            if error.errno != errno.ETIMEDOUT or time.monotonic() > deadline:
                self._error = error
            return
        for kind, flags, sequence, body in parse_messages(data):
            if sequence != self._sequence:
                continue  # a late answer to an earlier request that timed out
            self._is_done = True
            if kind == NLMSG_ERROR:
                self._is_acknowledged = True
                number, message = parse_error(body, flags)
                if number:
                    self._error = refused(self._request.operation, number, message)

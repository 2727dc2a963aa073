"""How answers are matched to requests, on a socket whose other end is a script instead of the kernel."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from calico_core.dataplane.linux.netlink import (
    HEADER,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    NetlinkSocket,
    Request,
)
from calico_core.errors import KernelRefused

ASK = Request("ask", 18, 0, b"")


class ScriptedSocket(NetlinkSocket):
    """Answers were written before the questions: sequence numbers count from 1."""

    def __init__(self, *datagrams: bytes) -> None:
        self._socket, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sequence = 0
        self._configure(0.05)
        for datagram in datagrams:
            self.kernel.send(datagram)

    def close(self) -> None:
        super().close()
        self.kernel.close()


def message(kind: int, sequence: int, body: bytes = b"", flags: int = 0) -> bytes:
    return HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body


def acknowledgement(sequence: int, number: int = 0) -> bytes:
    return message(NLMSG_ERROR, sequence, struct.pack("=i", -number) + bytes(16), 0x100)


def done(sequence: int) -> bytes:
    return message(NLMSG_DONE, sequence, bytes(4))


def test_an_interrupted_dump_is_taken_again():
    with ScriptedSocket(
        message(16, 1, b"old!", NLM_F_DUMP_INTR), done(1), message(16, 2, b"new!") + message(16, 2, b"more"), done(2)
    ) as scripted:
        assert scripted.dump(ASK) == [b"new!", b"more"]


def test_a_dump_that_never_rests_ends_with_its_last_pass():
    passes = [message(16, number, b"%04d" % number, NLM_F_DUMP_INTR) + done(number) for number in range(1, 9)]
    with ScriptedSocket(*passes) as scripted:
        assert scripted.dump(ASK) == [b"0008"]


def test_late_answers_to_earlier_requests_are_skipped():
    with ScriptedSocket(acknowledgement(0, errno.EPERM), message(16, 0), acknowledgement(1)) as scripted:
        assert scripted.attempt([ASK])[0].error is None


def test_every_request_of_a_send_gets_its_own_outcome():
    answers = acknowledgement(1) + message(16, 2, b"body"), acknowledgement(2) + acknowledgement(3, errno.EEXIST)
    with ScriptedSocket(*answers) as scripted:
        first, second, third = scripted.attempt([ASK, ASK, ASK])
    assert (first.error, first.replies) == (None, ())
    assert (second.error, second.replies) == (None, ((16, b"body"),))
    assert third.error is not None
    assert (third.error.errno, third.error.operation) == (errno.EEXIST, "ask")


def test_the_first_error_is_raised_by_execute():
    answers = acknowledgement(1) + acknowledgement(2, errno.ENODEV)
    with ScriptedSocket(answers) as scripted, pytest.raises(KernelRefused, match="ask: No such device"):
        scripted.execute(ASK, ASK)


@pytest.mark.parametrize("ask", [lambda each: each.execute(ASK), lambda each: each.dump(ASK)])
def test_silence_ends_with_a_time_out(ask):
    with ScriptedSocket() as scripted, pytest.raises(KernelRefused) as refused:
        ask(scripted)
    assert refused.value.errno == errno.ETIMEDOUT


@pytest.mark.parametrize(
    "answer", [acknowledgement(1, errno.EPERM), message(NLMSG_DONE, 1, struct.pack("=i", -errno.EPERM))]
)
def test_a_dump_that_fails_says_so(answer):
    with ScriptedSocket(answer) as scripted, pytest.raises(KernelRefused) as refused:
        scripted.dump(ASK)
    assert refused.value.errno == errno.EPERM


def test_nothing_asked_nothing_sent():
    with ScriptedSocket() as scripted:
        assert scripted.attempt([]) == []

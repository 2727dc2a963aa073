"""A signal is answered by a thread that holds no lock of what it interrupted."""

from __future__ import annotations

import os
import signal
import threading

from calico_core.node.signal_actions import SignalActions


def test_a_signal_is_answered_in_another_thread_and_a_failure_ends_nothing() -> None:
    heard: list[str] = []
    done = threading.Event()
    before = signal.getsignal(signal.SIGUSR2)

    def fail() -> None:
        raise KeyError("cause")

    def note() -> None:
        heard.append(threading.current_thread().name)
        done.set()

    actions = SignalActions({signal.SIGHUP: fail, signal.SIGUSR2: note})
    actions.start()
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert done.wait(5)
    finally:
        actions.stop()
    assert heard == ["signals"]
    assert signal.getsignal(signal.SIGUSR2) is before

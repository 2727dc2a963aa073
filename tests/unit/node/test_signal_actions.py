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
        assert done.wait(20)
    finally:
        actions.stop()
    assert heard == ["signals"]
    assert signal.getsignal(signal.SIGUSR2) is before


def test_a_signal_is_answered_while_the_main_thread_waits_and_another_got_it() -> None:
    """The kernel gives a process's signal to any thread, and no wait of the main thread ends by it then."""
    done, ends = threading.Event(), threading.Event()
    other = threading.Thread(target=ends.wait)
    actions = SignalActions({signal.SIGUSR2: done.set})
    actions.start()
    other.start()
    killer = threading.Timer(0.1, lambda: signal.pthread_kill(other.ident or 0, signal.SIGUSR2))
    killer.start()
    try:
        assert done.wait(20)
    finally:
        ends.set()
        other.join()
        killer.join()
        actions.stop()


def test_signals_of_others_are_left_to_them() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    actions = SignalActions({signal.SIGUSR2: lambda: None})
    actions.start()
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
    finally:
        actions.stop()
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]

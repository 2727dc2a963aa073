"""What rules have matched: asked for by any thread, read by the engine, which alone may look at the dataplane."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future

from calico_core.errors import CalicoError, NotReady
from calico_core.interfaces.dataplane import Dataplane
from calico_core.node.agent_state import CountsWanted
from calico_core.node.counters import CountedRule

_WAIT_S = 4.0
_FOR_METRICS_S = 1.0
_LAST_S = 10.0


class RuleCounts:
    """``post`` puts a wish into the engine's mailbox, which brings it to :meth:`answer`."""

    def __init__(self, dataplane: Dataplane, post: Callable[[CountsWanted], None]) -> None:
        self._dataplane, self._post = dataplane, post
        self._latest: tuple[CountedRule, ...] = ()
        self._latest_until = 0.0

    def ask(self, timeout_s: float = _WAIT_S) -> tuple[CountedRule, ...]:
        """What each rule has matched since it was last written.

        :raises NotReady: the engine does not come to it in time.
        """
        reply: Future[tuple[CountedRule, ...]] = Future()
        self._post(CountsWanted(reply))
        try:
            return reply.result(timeout_s)
        except TimeoutError:
            reply.cancel()
            raise NotReady(f"the agent is busy: no counters within {timeout_s:g} s") from None

    def for_metrics(self) -> tuple[CountedRule, ...]:
        """A look at the kernel, so at most once in a while however often we are asked."""
        now = time.monotonic()
        if now >= self._latest_until:
            self._latest_until = now + _LAST_S
            with contextlib.suppress(CalicoError):
                self._latest = self.ask(_FOR_METRICS_S)
        return self._latest

    def answer(self, reply: Future[tuple[CountedRule, ...]]) -> None:
        """The engine's thread."""
        if not reply.set_running_or_notify_cancel():
            return
        try:
            counts = self._dataplane.rule_counts()
            rules = self._dataplane.wanted().rules
            reply.set_result(tuple(CountedRule.of(each, rules.get(each.rules)) for each in counts))
        except CalicoError as error:
            reply.set_exception(error)

"""Mesos on the node's runtime: calls of the program that the agent's network module runs.

Whatever happens, the agent gets one JSON object on standard output; it looks at nothing else. One log line a call.
"""

from __future__ import annotations

import time
from typing import ClassVar

from netaddr import IPAddress

from calico_core.errors import CalicoError, NotReady
from calico_core.interfaces.integration import (
    API_VERSION,
    Call,
    CallReply,
    Integration,
    IntegrationContext,
    IntegrationInfo,
)
from calico_core.log import bound, get_logger
from calico_mesos.commands import Commands
from calico_mesos.container import isolated_addresses
from calico_mesos.errors import Refused, text_of
from calico_mesos.wire import command_of, encode_error, encode_reply, parse_request

PROGRAMS = ("calico-mesos", "calico_mesos")
FAILED = 1

log = get_logger(__name__)


class MesosIntegration(Integration):
    info: ClassVar[IntegrationInfo] = IntegrationInfo(name="mesos", api_version=API_VERSION, programs=PROGRAMS)

    def __init__(self) -> None:
        self._commands: Commands | None = None
        self._context: IntegrationContext | None = None
        self._is_strict = False

    def prepare(self, context: IntegrationContext) -> None:
        self._commands = Commands(context)
        self._context = context
        self._is_strict = context.settings.mesos_strict

    def addresses_in_use(self) -> dict[IPAddress, str]:
        """Those of containers that were isolated here and not cleaned up since."""
        return isolated_addresses(self._context.records, self._context.host) if self._context is not None else {}

    def handle(self, call: Call) -> CallReply:
        """Never raises."""
        started = time.perf_counter()
        with bound(program=call.program):
            try:
                stdout = self._run(call)
                log.info("mesos.done", command=command_of(call.stdin), ms=_milliseconds_since(started))
                return CallReply(stdout=stdout)
            except CalicoError as error:
                log.warning(
                    "mesos.failed",
                    command=command_of(call.stdin),
                    reason=str(error),
                    is_refused=isinstance(error, Refused),
                    ms=_milliseconds_since(started),
                )
                return self.refuse(call, error)
            except BaseException as error:  # the agent waits for an answer even to an interrupt or lack of memory
                log.exception("mesos.failed", command=command_of(call.stdin), ms=_milliseconds_since(started))
                return self.refuse(call, error)

    @staticmethod
    def refuse(call: Call, error: BaseException) -> CallReply:  # noqa: ARG004 - as other integrations have it
        """The error object for a call; also for a process that cannot even prepare the integration."""
        return CallReply(status=FAILED, stdout=encode_error(text_of(error)))

    def _run(self, call: Call) -> bytes:
        request = parse_request(call.stdin, is_strict=self._is_strict)
        if self._commands is None:
            raise NotReady("nothing is prepared to run it")
        return encode_reply(self._commands.run(request))


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)

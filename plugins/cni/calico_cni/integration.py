"""CNI on the node's runtime: calls of the programs ``calico`` and ``calico-ipam``.

Whatever happens, the runtime gets what the protocol promises: a result, nothing, or an error object on standard
output with status 1. One log line a call. Where a call is traced, one JSON line on standard error says where its time
went.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import msgspec

from calico_cni.attachment_locks import AttachmentLocks
from calico_cni.commands import NetworkCommands
from calico_cni.deferred import DeferredDetach, DeferredDetaches
from calico_cni.environment import Invocation, parse_environment
from calico_cni.errors import InvalidEnvironment, code_of
from calico_cni.forwarding import listening
from calico_cni.identity import ORCHESTRATORS, recorded_handle
from calico_cni.ipam import IpamCommands
from calico_cni.migrations import Migrations
from calico_cni.outcome import Outcome
from calico_cni.programs import IPAM_PROGRAM, NETWORK_PROGRAM
from calico_cni.results import encode_error, encode_versions
from calico_cni.trace import is_traced
from calico_cni.versions import NEWEST, VERSIONS, known_version
from calico_cni.wire import read_version
from calico_core import __version__
from calico_core.errors import CalicoError, InvalidSettings, NotReady
from calico_core.interfaces.integration import (
    API_VERSION,
    Call,
    CallReply,
    Gauge,
    Integration,
    IntegrationContext,
    IntegrationInfo,
)
from calico_core.log import bound, get_logger
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.settings import Settings
from calico_core.stopwatch import measured

if TYPE_CHECKING:
    from calico_cni.service_account import Refresher

ABOUT = f"Calico CNI plugin {__version__}; CNI protocol versions supported: {', '.join(VERSIONS)}\n"
FAILED = 1
TEST = "TEST"
UPGRADE = "UPGRADE"
"""What the executables make of ``-t`` and ``-upgrade``. They are no commands of the protocol: a runtime that sends them
is refused there."""
REPLAY_INTERVAL_S = 1.0

_LOGGED = (
    ("command", "CNI_COMMAND"),
    ("container", "CNI_CONTAINERID"),
    ("interface", "CNI_IFNAME"),
)

log = get_logger(__name__)


class _Commands(Protocol):
    def close(self) -> None: ...

    def run(self, call: Call, invocation: Invocation) -> Outcome: ...

    def test(self, call: Call) -> Outcome: ...

    def upgrade(self, call: Call) -> Outcome: ...

    def detach_deferred(self, detach: DeferredDetach) -> None: ...


class CniIntegration(Integration):
    info: ClassVar[IntegrationInfo] = IntegrationInfo(
        name="cni",
        api_version=API_VERSION,
        programs=(NETWORK_PROGRAM, IPAM_PROGRAM),
        orchestrators=ORCHESTRATORS,
    )

    def __init__(self) -> None:
        self._programs: dict[str, _Commands] = {}
        self._locks: AttachmentLocks | None = None
        self._deferred: DeferredDetaches | None = None
        self._migrations: Migrations | None = None
        self._refresher: Refresher | None = None

    def prepare(self, context: IntegrationContext) -> None:
        state = Path(context.settings.state_directory, "cni")
        self._deferred = DeferredDetaches(state / "deferred")
        self._migrations = migrations = Migrations(state)
        self._refresher = _refresher(context.settings) if context.is_resident else None
        self._locks = locks = AttachmentLocks(state)
        self._programs = {
            NETWORK_PROGRAM: NetworkCommands(context, locks, self._deferred, migrations),
            IPAM_PROGRAM: IpamCommands(context, locks, self._deferred, migrations),
        }

    def close(self) -> None:
        for program in self._programs.values():
            program.close()

    def serve(self, stop: threading.Event) -> None:
        """Do what was put off while the datastore was away, when it is back; keep the kubeconfig current."""
        while not stop.wait(REPLAY_INTERVAL_S):
            try:
                if self._refresher is not None:
                    self._refresher.turn()
                self.replay()
            except Exception:  # the next turn may do better, and calls must go on
                log.exception("detach.replay_failed")

    def gauges(self) -> tuple[Gauge, ...]:
        """Of the credentials that the node keeps current for its plugins."""
        credentials = self._refresher.credentials() if self._refresher is not None else None
        if credentials is None:
            return ()
        age = Gauge(
            name="credentials_age_seconds",
            text="Since the kubeconfig of the network lists was written.",
            value=credentials.age_s,
        )
        if credentials.left_s is None:
            return (age,)
        text = "Until its token is refused; negative: since then."
        return age, Gauge(name="credentials_left_seconds", text=text, value=credentials.left_s)

    def replay(self) -> int:
        """How many detaches that had been put off are done now."""
        deferred, locks = self._deferred, self._locks
        if deferred is None or locks is None or (self._migrations is not None and self._migrations.is_under_way):
            return 0
        return deferred.replay(
            lambda detach: self._programs[detach.program].detach_deferred(detach),
            # it is tried again soon, and others need not wait for it
            lambda detach: locks.hold(detach.program, detach.network, detach.invocation, pod=detach.pod, timeout_s=0.0),
        )

    @classmethod
    def handle_of(cls, key: WorkloadEndpointKey, endpoint: WorkloadEndpoint) -> str | None:  # noqa: ARG003
        return recorded_handle(endpoint)

    def handle(self, call: Call) -> CallReply:
        """Never raises."""
        fields = {name: _printable(call.environment.get(variable, "")) for name, variable in _LOGGED}
        with bound(program=call.program, **fields), measured() as watch, listening() as heard:
            try:
                outcome = self._run(call)
                reply = CallReply(stdout=outcome.stdout, stderr=outcome.stderr)
                log.info("cni.done", ms=watch.total_ms, **dict(watch.steps))
            except CalicoError as error:
                reply = self.refuse(call, error)
                ms, steps = watch.total_ms, dict(watch.steps)
                log.warning("cni.failed", code=code_of(error, NEWEST), reason=str(error), ms=ms, **steps)
            except BaseException as error:  # the runtime waits for an answer even to an interrupt or lack of memory
                reply = self.refuse(call, error)
                log.exception("cni.failed", code=code_of(error, NEWEST), ms=watch.total_ms, **dict(watch.steps))
        if heard:
            reply = msgspec.structs.replace(reply, stderr=reply.stderr + heard)
        if not is_traced(call):
            return reply
        trace = {"calico.trace": {**fields, "ms": watch.total_ms, "steps": dict(watch.steps)}}
        return msgspec.structs.replace(reply, stderr=reply.stderr + msgspec.json.encode(trace) + b"\n")

    @classmethod
    def makes_interfaces(cls, call: Call) -> bool:
        return call.program == NETWORK_PROGRAM and call.environment.get("CNI_COMMAND", "") not in {TEST, UPGRADE}

    @staticmethod
    def refuse(call: Call, error: BaseException) -> CallReply:
        """The error object for a call; also for a process that cannot even prepare the integration."""
        # the environment is judged before the configuration is read, so no version is known then
        version = NEWEST if isinstance(error, InvalidEnvironment) else known_version(read_version(call.stdin))
        return CallReply(status=FAILED, stdout=encode_error(error, version))

    def _run(self, call: Call) -> Outcome:
        command = call.environment.get("CNI_COMMAND", "")
        if command == TEST:
            return self._commands(call).test(call)
        if command == UPGRADE:
            return self._commands(call).upgrade(call)
        if not command:
            return Outcome(stderr=ABOUT.encode())
        if command == "VERSION":
            return Outcome(encode_versions(read_version(call.stdin)))
        return self._commands(call).run(call, parse_environment(call.environment))

    def _commands(self, call: Call) -> _Commands:
        commands = self._programs.get(call.program)
        if commands is None:
            raise NotReady(f"nothing is prepared to run {call.program!r}")
        return commands


def _refresher(settings: Settings) -> Refresher | None:
    """:raises InvalidSettings: tokens are to be asked for, and there is no file to put them in."""
    if not settings.cni_kubeconfig and settings.cni_service_account:
        origin = settings.origins.get("cni_service_account", "default")
        raise InvalidSettings("cni_service_account", origin, "needs cni_kubeconfig, the file that its tokens go to")
    if not settings.cni_kubeconfig:
        return None
    from calico_cni.service_account import ACCOUNT_DIRECTORY, Refresher  # a process for one call keeps no file current
    from calico_cni.token_request import TokenRequester

    tokens = TokenRequester(settings, ACCOUNT_DIRECTORY) if settings.cni_service_account else None
    return Refresher(Path(settings.cni_kubeconfig), tokens=tokens)


def _printable(value: str) -> str:
    """A variable need not be UTF-8; a log line is."""
    return value.encode(errors="replace").decode()

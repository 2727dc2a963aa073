"""The integration seam: how an orchestrator's plugin lives on the shared node runtime.

An integration is a class under the ``calico.integrations`` entry points. The host loads it, checks the API version,
calls :meth:`Integration.prepare` once and then either hands it one-shot calls that reached the node's socket
(:meth:`handle`) or lets it run a server of its own (:meth:`serve`). Loading must be cheap and free of effects.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import msgspec
from netaddr import IPAddress

from calico_core.errors import InvalidRequest
from calico_core.interfaces.datastore import Records
from calico_core.interfaces.ipam import Ipam
from calico_core.interfaces.workloads import Workloads
from calico_core.listening import Listeners
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.record import Value
from calico_core.settings import Settings

API_VERSION = 1


class IntegrationInfo(Value, frozen=True):
    """``api_version``: the :data:`API_VERSION` it was written for. ``programs``: names of executables whose calls it
    handles, as they arrive on the node's socket (``calico``, ``calico-ipam``). ``orchestrators``: what its endpoint
    records and addresses are filed under; none named: under ``name``."""

    name: str
    api_version: int
    programs: tuple[str, ...] = ()
    orchestrators: tuple[str, ...] = ()

    @property
    def filed_under(self) -> tuple[str, ...]:
        return self.orchestrators or (self.name,)


class IntegrationContext(Value, frozen=True):
    """What the runtime hands in. ``host`` is the node's name in every key. ``is_resident`` False: the same code runs
    inside a one-shot process because the runtime is down. A server of its own opens its socket by ``listeners``, and
    the socket survives a restart."""

    workloads: Workloads
    ipam: Ipam
    records: Records
    settings: Settings
    host: str
    is_resident: bool = True
    listeners: Listeners = msgspec.field(default_factory=Listeners)


def _stays() -> bool:
    return False


class Call(Value, frozen=True):
    """One execution of a shim: program name, its environment and standard input; ``namespace_fd`` is the network
    namespace it opened for us, if any. ``mounts_fd`` is the mount namespace it stands in, where that is another than
    the node's, and ``root_fd`` the directory that is its root there: files that the call names lie below it. All are
    valid until the reply. ``caller_left`` says whether the shim has gone, as it does when its runtime gives up: ask it
    after a long wait, for what begins then may come after what is to undo it."""

    program: str
    environment: dict[str, str]
    stdin: bytes
    namespace_fd: int | None = None
    mounts_fd: int | None = None
    root_fd: int | None = None
    caller_left: Callable[[], bool] = _stays


class CallReply(Value, frozen=True):
    """What the shim gives back: exit status, standard output and error."""

    status: int = 0
    stdout: bytes = b""
    stderr: bytes = b""


class Gauge(Value, frozen=True):
    """A figure for metrics, whose name there is ``calico_<integration>_<name>``, with ``_`` for each character that is
    no letter of ASCII, digit or ``_``; ``text`` says what it is. One whose name there is taken already is left
    out."""

    name: str
    text: str
    value: float


class Integration(abc.ABC):
    info: ClassVar[IntegrationInfo]

    @abc.abstractmethod
    def prepare(self, context: IntegrationContext) -> None:
        """Check that it can work here; may fail with a reason for people. No work begins before."""

    def handle(self, call: Call) -> CallReply:
        """Answer one call. Any thread, several at once. Must answer failures in the caller's own form."""
        raise InvalidRequest("program", f"{self.info.name} does not take calls such as {call.program!r}")

    @classmethod
    def makes_interfaces(cls, call: Call) -> bool:  # noqa: ARG003
        """Whether the call may make an interface. A process of its own for one call (see ``is_resident``) closes the
        kernel to unknown interfaces before it runs such a call."""
        return True

    @classmethod
    def refuse(cls, call: Call, error: Exception) -> CallReply:
        """Answer a call that :meth:`handle` cannot get, because :meth:`prepare` failed or the host did, in the
        caller's own form. Needs no preparation; never raises."""
        return CallReply(status=1, stderr=f"{call.program}: {error}\n".encode())

    def serve(self, stop: threading.Event) -> None:
        """Run a server in a thread of its own until ``stop`` is set. Most have none."""
        stop.wait()

    def addresses_in_use(self) -> Mapping[IPAddress, str]:
        """Addresses of this host that its orchestrator names in use although no endpoint record may carry them, each
        with whose it is. The collector frees none of them; while this raises, none that the integration assigned."""
        return {}

    def gauges(self) -> Sequence[Gauge]:
        """What it tells of itself at this moment. Any thread, whenever metrics are read; must be quick."""
        return ()

    @classmethod
    def handle_of(cls, key: WorkloadEndpointKey, endpoint: WorkloadEndpoint) -> str | None:  # noqa: ARG003
        """Under which handle the addresses of one of its endpoints are held, for a store that forgot them; None when
        the record does not tell."""
        return None

    @property
    def is_server(self) -> bool:
        """Whether :meth:`serve` does something."""
        return type(self).serve is not Integration.serve

    def close(self) -> None:
        """Free what :meth:`prepare` took."""

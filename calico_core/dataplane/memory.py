"""A dataplane without a kernel: it keeps what it was told, and its wiring keeps what it was asked to make.

For tests of the agent and of integrations, and for trying the system on a machine where nothing may be programmed. It
keeps the seam's promises (a complete batch first, only differences count, failures stay wanted), and can be told to
fail.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from netaddr import EUI, IPNetwork

from calico_core.dataplane.claims import Claims
from calico_core.errors import CalicoError, InvalidRequest
from calico_core.interfaces.dataplane import (
    ApplyReport,
    Connection,
    Dataplane,
    DataplaneOptions,
    DeniedPacket,
    Failure,
    RuleCount,
    WorkloadWiring,
)
from calico_core.model.hoststate import HostChanges, HostState
from calico_core.model.workloads import InterfaceEvent, PairRequest, WiredInterface, WiringRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from netaddr import IPAddress

    from calico_core.model.hoststate import HostRule, HostRules, RulesId
    from calico_core.model.keys import WorkloadEndpointKey

_HOST_MAC = EUI("ee:ee:ee:ee:ee:ee")
_DEFAULT_MTU_BYTES = 1500
Direction = Literal["inbound", "outbound"]


class MemoryWiring(WorkloadWiring):
    """Interfaces as records. ``fail_next`` makes the next attach or pair raise, having made nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, tuple[WiringRequest | PairRequest, WiredInterface]] = {}
        self._callbacks: list[Callable[[InterfaceEvent], None]] = []
        self._failure: CalicoError | None = None
        self._serial = 0
        self._abandoned: dict[str, int] = {}

    def fail_next(self, error: CalicoError) -> None:
        self._failure = error

    def attach(self, request: WiringRequest) -> WiredInterface:
        with self._lock:
            self._raise_failure()
            standing = self._made.get(request.interface)
            if standing is not None and _same(standing[0], request):
                return msgspec.structs.replace(standing[1], is_new=False)
            # anything else of that name is ours to repair or to replace, as the kernel's driver does
            wired = self._make(request.interface, request)
        self._tell("up", request.interface)
        return wired

    def detach(self, interface: str) -> None:
        with self._lock:
            gone = self._made.pop(interface, None)
            self._abandoned.pop(interface, None)
        if gone is not None:
            self._tell("deleted", interface)

    def check(self, request: WiringRequest) -> tuple[str, ...]:
        with self._lock:
            standing = self._made.get(request.interface)
        if standing is None:
            return (f"interface {request.interface} does not exist",)
        made = standing[0]
        if isinstance(made, WiringRequest):  # what plugins after us may change does not count
            made = msgspec.structs.replace(
                made, mac=request.mac, mtu_bytes=request.mtu_bytes, queues=request.queues, device=request.device
            )
        if not _same(made, request):
            return (f"interface {request.interface} was made for another request",)
        return ()

    def host_end(self, namespace_fd: int, container_interface: str) -> str | None:
        with self._lock:
            for name, (request, _) in self._made.items():
                if isinstance(request, WiringRequest) and (request.namespace_fd, request.container_interface) == (
                    namespace_fd,
                    container_interface,
                ):
                    return name
        return None

    def orphans(self) -> Mapping[str, int]:
        with self._lock:
            return dict(self._abandoned)

    def remove_orphans(self, indexes: Collection[int]) -> None:
        for name in [name for name, index in self.orphans().items() if index in indexes]:
            self.detach(name)

    def abandon(self, interface: str) -> None:
        """As when the last process of its container ends."""
        with self._lock:
            self._serial += 1
            self._abandoned[interface] = self._serial

    def make_pair(self, request: PairRequest) -> WiredInterface:
        with self._lock:
            self._raise_failure()
            wired = self._make(request.interface, request)
        self._tell("up", request.interface)
        return wired

    def exists(self, interface: str) -> bool:
        return interface in self._made

    def routes(self, interface: str) -> tuple[IPNetwork, ...]:
        made = self._made.get(interface)
        return made[0].addresses if made is not None else ()

    def watch(self, callback: Callable[[InterfaceEvent], None]) -> Callable[[], None]:
        self._callbacks.append(callback)

        def stop() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return stop

    def _make(self, interface: str, request: WiringRequest | PairRequest) -> WiredInterface:
        self._serial += 1
        self._abandoned.pop(interface, None)
        wired = WiredInterface(
            interface=interface,
            host_mac=_HOST_MAC,
            mac=request.mac or EUI(0x02_00_00_00_00_00 + self._serial),
            mtu_bytes=request.mtu_bytes or _DEFAULT_MTU_BYTES,
        )
        self._made[interface] = (request, wired)
        return wired

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _tell(self, kind: Any, interface: str) -> None:
        for callback in tuple(self._callbacks):
            callback(InterfaceEvent(kind=kind, name=interface))


class MemoryDataplane(Dataplane):
    """``state`` is what is "in the kernel"; ``applied`` are the batches in order; ``is_closed`` after
    :meth:`ensure_closed`. Subjects put in ``refused`` (with a reason) fail until they are taken out again.

    What a kernel would see of its own is told with :meth:`deny`, :meth:`count`, :meth:`connect` and
    :meth:`set_addresses`."""

    def __init__(self, options: DataplaneOptions) -> None:
        self.options = options
        self.state = HostState()
        self.applied: list[HostChanges] = []
        self.is_closed = False
        self.is_open = True
        self.refused: dict[str, str] = {}
        self._is_complete = False
        self._wiring = MemoryWiring()
        self._programmed: dict[object, object] = {}
        self._claims = Claims()
        self._denied: list[Callable[[DeniedPacket], None]] = []
        self._addresses: dict[str, frozenset[IPAddress]] = {}
        self._address_callbacks: list[Callable[[str, frozenset[IPAddress] | None], None]] = []
        self._counts: dict[tuple[RulesId, Direction, int], tuple[int, int]] = {}
        self._connections: list[Connection] = []

    @classmethod
    def open(cls, options: DataplaneOptions) -> MemoryDataplane:
        return cls(options)

    def ensure_closed(self) -> None:
        self.is_closed = True

    def apply(self, changes: HostChanges) -> ApplyReport:
        if not self._is_complete and not changes.is_complete:
            raise InvalidRequest("is_complete", "the first batch must carry the whole state")
        self._is_complete = self.is_closed = True
        self.applied.append(changes)
        for rules in changes.rules:
            if self.state.rules.get(rules.id) != rules:
                # written anew: what it has matched begins again
                self._counts = {name: count for name, count in self._counts.items() if name[0] != rules.id}
        self.state.update(changes)
        if changes.is_complete:
            self._claims.clear()
        for workload in changes.workloads:
            self._claims.put(workload)
        for key in changes.removed_workloads:
            self._claims.remove(key)
        return self._program()

    def resync(self) -> ApplyReport:
        if not self._is_complete:
            return ApplyReport()
        report = self._program()
        return msgspec.structs.replace(report, healed=("programmed state",) if report.changes else ())

    def interface_changed(self, event: InterfaceEvent) -> ApplyReport:
        return ApplyReport(endpoints_without_link=self._without_link(event.name))

    def watch_interfaces(self, callback: Callable[[InterfaceEvent], None]) -> Callable[[], None]:
        return self._wiring.watch(callback)

    def wiring(self) -> MemoryWiring:
        return self._wiring

    def watch_addresses(self, callback: Callable[[str, frozenset[IPAddress] | None], None]) -> Callable[[], None]:
        self._address_callbacks.append(callback)
        for name, addresses in self._addresses.items():
            callback(name, addresses)
        return _once(lambda: self._address_callbacks.remove(callback))

    def set_addresses(self, interface: str, *addresses: IPAddress) -> None:
        """An interface of the host has these addresses from now on."""
        self._tell_addresses(interface, frozenset(addresses))

    def remove_interface(self, interface: str) -> None:
        """An interface of the host is gone."""
        self._tell_addresses(interface, None)

    def _tell_addresses(self, interface: str, addresses: frozenset[IPAddress] | None) -> None:
        if interface.startswith(self.options.interface_prefixes) or self._addresses.get(interface) == addresses:
            return
        if addresses is None:
            del self._addresses[interface]
        else:
            self._addresses[interface] = addresses
        for callback in tuple(self._address_callbacks):
            callback(interface, addresses)

    def watch_denied(self, callback: Callable[[DeniedPacket], None]) -> Callable[[], None]:
        if not self.options.denied_group:
            return lambda: None
        self._denied.append(callback)
        return _once(lambda: self._denied.remove(callback))

    def deny(self, packet: DeniedPacket) -> None:
        """As if this had been denied now."""
        for callback in tuple(self._denied):
            callback(packet)

    def rule_counts(self) -> tuple[RuleCount, ...]:
        """Zeros for rules that nothing was counted of."""
        return tuple(
            RuleCount(rules.id, direction, number, *self._counts.get((rules.id, direction, number), (0, 0)))
            for rules in self.state.rules.values()
            for direction, each in _sides(rules)
            for number in range(len(each))
        )

    def count(self, rules: RulesId, direction: Direction, rule: int, packets: int, size_bytes: int) -> None:
        """As if the rule had matched so much."""
        before = self._counts.get((rules, direction, rule), (0, 0))
        self._counts[rules, direction, rule] = (before[0] + packets, before[1] + size_bytes)

    def wanted(self) -> HostState:
        return self.state.copy()

    def connections(self) -> tuple[Connection, ...]:
        return tuple(self._connections)

    def connect(self, connection: Connection) -> None:
        """As if it had been made."""
        self._connections.append(connection)

    def cut(self, connections: Iterable[Connection]) -> int:
        doomed = set(connections)
        before = len(self._connections)
        self._connections = [each for each in self._connections if each not in doomed]
        return before - len(self._connections)

    def purge(self) -> None:
        self.state = HostState()
        self._programmed.clear()
        self._claims.clear()
        self._is_complete = self.is_closed = False

    def close(self) -> None:
        self.is_open = False

    def forget(self) -> None:
        """As if somebody had flushed the kernel: the next resync finds and heals it."""
        self._programmed.clear()

    def is_programmed(self, workload: WorkloadEndpointKey) -> bool:
        """Whether the workload's policy is in force as it is wanted."""
        return self._programmed.get(workload) == self.state.workloads.get(workload, self)

    def _program(self) -> ApplyReport:
        wanted: dict[object, object] = {"pools": self.state.pools, "peers": self.state.peers}
        parts = (self.state.sets, self.state.port_sets, self.state.rules, self.state.workloads)
        for part in parts:
            wanted.update(part.items())
        wanted.update((interface.key, interface) for interface in self.state.interfaces.values())
        losers = [Failure(workload.key.path, reason) for workload, reason in self._claims.losers()]
        subjects = {_subject(name) for name in wanted}
        failures = [Failure(subject, reason) for subject, reason in self.refused.items() if subject in subjects]
        impossible = self.refused.keys() | dict(losers).keys()
        possible = {name: value for name, value in wanted.items() if _subject(name) not in impossible}
        changed = [name for name, value in possible.items() if self._programmed.get(name, self) != value]
        changes = len(changed) + len(self._programmed.keys() - possible.keys())
        self._programmed = possible
        return ApplyReport(
            changes=changes,
            failures=tuple(failures),
            losers=tuple(losers),
            endpoints_without_link=self._without_link(),
        )

    def _without_link(self, interface: str = "") -> tuple[WorkloadEndpointKey, ...]:
        """Active workloads whose interface was not made here; of one interface when given."""
        return tuple(
            key
            for key, workload in sorted(self.state.workloads.items(), key=lambda item: item[0].path)
            if workload.is_active
            and interface in ("", workload.interface)
            and not self._wiring.exists(workload.interface)
        )


def _sides(rules: HostRules) -> tuple[tuple[Direction, tuple[HostRule, ...]], ...]:
    return ("inbound", rules.inbound), ("outbound", rules.outbound)


def _once(action: Callable[[], object]) -> Callable[[], None]:
    """What stops a watch may be called again."""
    pending = [action]

    def stop() -> None:
        if pending:
            pending.pop()()

    return stop


def _subject(name: object) -> str:
    """As reports name it: a workload by its key's path, the rest by its id."""
    path = getattr(name, "path", None)
    return path if isinstance(path, str) else str(name)


def _same(standing: WiringRequest | PairRequest, request: WiringRequest) -> bool:
    """Descriptors differ from call to call; they do not count."""
    if not isinstance(standing, WiringRequest):
        return False
    return msgspec.structs.replace(standing, namespace_fd=0) == msgspec.structs.replace(request, namespace_fd=0)

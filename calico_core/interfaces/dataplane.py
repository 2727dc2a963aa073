"""The dataplane seams: the agent programs a host through :class:`Dataplane`, the workload service makes interfaces
through :class:`WorkloadWiring`. Neither sees the other's."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from netaddr import IPAddress, IPNetwork

from calico_core.model.hoststate import HostChanges, HostState, RulesId
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.record import Value
from calico_core.model.workloads import InterfaceEvent, PairRequest, WiredInterface, WiringRequest
from calico_core.stopwatch import Timing


class FailsafePort(NamedTuple):
    """A port of the host that no policy closes. ``net`` None: whoever is at the other end."""

    protocol: int
    port: int
    net: IPNetwork | None = None


class DataplaneOptions(Value, frozen=True):
    """``interface_prefixes``: host interfaces of workloads start with one of them. ``endpoint_to_host``: what happens
    to traffic from a workload to the host itself. ``route_protocol`` marks the routes that are ours.

    ``deny_action``: what every denial does, of a rule that says "deny" and of none that says anything.
    ``drop_override`` comes before it; the ``ACCEPT`` forms switch policy off. ``failsafe_…``: see
    :class:`FailsafePort`; they hold on interfaces of host endpoints. ``metadata``: address and port that stand behind
    169.254.169.254:80. ``log_rate``: log lines a ``log_unit`` and rule, 0: no limit, with bursts of ``log_burst``.
    ``denied_group``: the NFLOG group that denied packets are told to, 0: none. ``mark_mask``: the bits of a packet's
    mark that are ours, two at least. ``max_set_size``: members of one set; rules that name a larger one deny.
    ``address_poll_s``: between two looks at the host's own addresses beside the kernel's events, 0: none.
    ``netlink_timeout_s``: how long the kernel may take for an answer. ``makes_routes`` False: somebody else makes the
    routes to workloads. ``makes_router`` False: whether the host forwards is somebody else's to say.

    ``chain_insert``: whether our jumps come before the rules that others have in the kernel's chains, or after them
    (iptables; with nftables, priorities of hooks say that).
    ``allows_ipip`` and ``allows_vxlan``: workloads may send such packets, as far as policy lets them.
    ``external_peers``: hosts that are none of ours and may send encapsulated packets to this one all the same.

    ``drops_invalid``: what belongs to no connection, as the kernel's tracking sees it, is dropped before policy.
    ``filter_allow`` and ``mangle_allow``: what becomes of a packet that policy allows, forwarded or to the host, and
    that policy before translation allows: that is the last word of its table, or the kernel's chain goes on (iptables;
    with nftables an accept is never more than ours). ``route_sources``: at most one a family, the preferred source of
    routes to workloads.

    Of what leaves the pools: ``nat_ports``, the source ports that TCP and UDP get, first and last; ``nat_address``, the
    address it gets, of the address's family, instead of that of the interface it leaves by; ``nat_interfaces``, the
    interface it must leave by to be translated at all, with a ``+`` at the end for names that begin so;
    ``nat_spares_hosts``, what goes to an address of a host is not translated either."""

    host: str = ""
    interface_prefixes: tuple[str, ...] = ("cali",)
    endpoint_to_host: str = "RETURN"
    is_ipv6_enabled: bool = True
    route_protocol: int = 80
    log_prefix: str = "calico-packet"
    log_rate: int = 0
    log_unit: Literal["second", "minute", "hour", "day"] = "second"
    log_burst: int = 5
    deny_action: Literal["DROP", "REJECT"] = "DROP"
    drop_override: Literal["DROP", "ACCEPT", "LOG-and-DROP", "LOG-and-ACCEPT"] = "DROP"
    failsafe_inbound: tuple[FailsafePort, ...] = ()
    failsafe_outbound: tuple[FailsafePort, ...] = ()
    metadata: tuple[IPAddress, int] | None = None
    denied_group: int = 0
    mark_mask: int = 0xFF000000
    max_set_size: int = 1 << 20
    address_poll_s: float = 0.0
    netlink_timeout_s: float = 10.0
    makes_routes: bool = True
    makes_router: bool = True
    chain_insert: Literal["Insert", "Append"] = "Insert"
    allows_ipip: bool = False
    allows_vxlan: bool = False
    external_peers: tuple[IPNetwork, ...] = ()
    drops_invalid: bool = True
    filter_allow: Literal["ACCEPT", "RETURN"] = "ACCEPT"
    mangle_allow: Literal["ACCEPT", "RETURN"] = "ACCEPT"
    route_sources: tuple[IPAddress, ...] = ()
    nat_ports: tuple[int, int] | None = None
    nat_address: IPAddress | None = None
    nat_interfaces: str = ""
    nat_spares_hosts: bool = False


class DenialOrigin(Value, frozen=True):
    """What denied a packet: the rule number ``rule`` (from 0) of ``rules`` as the host knows them; the end of a tier;
    the end of the profiles; or, with ``rules`` and ``tier`` None, what ``reason`` says (an unknown endpoint, a spoofed
    source). ``direction`` is as seen from the endpoint."""

    reason: str
    direction: Literal["inbound", "outbound"] | None = None
    tier: str | None = None
    rules: RulesId | None = None
    rule: int | None = None


class DeniedPacket(Value, frozen=True):
    """One packet that was dropped or refused. ``in_interface`` and ``out_interface``: '' where there is none.
    Ports, and ICMP type and code, are None where the protocol has none or the packet is cut short."""

    origin: DenialOrigin
    time: float
    in_interface: str
    out_interface: str
    src: IPAddress
    dst: IPAddress
    protocol: int
    src_port: int | None = None
    dst_port: int | None = None
    icmp: tuple[int, int] | None = None
    length_bytes: int = 0


class RuleCount(NamedTuple):
    """What a rule of the host's (:class:`DenialOrigin` names it so) has matched since it was written."""

    rules: RulesId
    direction: Literal["inbound", "outbound"]
    rule: int
    packets: int
    bytes: int


class Figure(NamedTuple):
    """A counter or a size for metrics, under the reference system's name without its prefix."""

    name: str
    value: float
    labels: Mapping[str, str] = MappingProxyType({})


def timing_figures(name: str, timing: Timing, *, units_a_second: float = 1.0) -> tuple[Figure, Figure]:
    """A summary's two."""
    return Figure(f"{name}_sum", timing.sum_s * units_a_second), Figure(f"{name}_count", timing.count)


class Connection(NamedTuple):
    """A tracked connection as its first packet had it, before any translation: (source, destination, source port,
    destination port; for ICMP type and code in place of the ports), and as the answers have it."""

    protocol: int
    src: IPAddress
    dst: IPAddress
    src_port: int
    dst_port: int
    reply_src: IPAddress
    reply_dst: IPAddress
    reply_src_port: int
    reply_dst_port: int


class Failure(NamedTuple):
    """Something that could not be programmed; it stays wanted and is tried again with the next apply.

    ``subject``: a workload by its key's path, rules and sets by their id, ``table …`` for the policy as a whole (then
    nothing of the batch is in force), anything else in the driver's words."""

    subject: str
    reason: str


def is_whole_policy(subject: str) -> bool:
    """Whether a failure of ``subject`` means that no workload's policy is known to be in force."""
    return subject.startswith("table ")


class ApplyReport(Value, frozen=True):
    """What one apply did. ``changes`` counts kernel objects touched (0: it was right already). ``losers``: active
    workloads whose interface another one has; that is of their records, and no other attempt would change it.
    ``endpoints_without_link``: programmed, but the interface is not there (yet), or is down."""

    changes: int = 0
    failures: tuple[Failure, ...] = ()
    losers: tuple[Failure, ...] = ()
    endpoints_without_link: tuple[WorkloadEndpointKey, ...] = ()
    healed: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        return not self.failures


class Dataplane(abc.ABC):
    """Programs policy, sets, routes and NAT of one host. Used by the engine thread alone.

    The order of life: :meth:`open`, :meth:`ensure_closed`, then applies; the first apply carries a complete state and
    is compared with what the kernel holds, so that a restart changes only what differs.
    """

    @classmethod
    @abc.abstractmethod
    def open(cls, options: DataplaneOptions) -> Dataplane: ...

    @classmethod
    def missing(cls) -> str:
        """What this host lacks for it, in words and by the names of modules or programs; '' when it has all."""
        return ""

    @staticmethod
    def remove_reference(namespace_fd: int | None = None) -> tuple[str, ...]:
        """Remove what the reference system's agents left by the means of this driver, for a host that runs none of
        them any more. Gives what was removed."""
        del namespace_fd
        return ()

    @abc.abstractmethod
    def ensure_closed(self) -> None:
        """Make sure that traffic of unknown workload interfaces is dropped. If our table stands already, or policy of
        ours by another kind of driver, nothing is touched: what it enforces stays in force."""

    @abc.abstractmethod
    def apply(self, changes: HostChanges) -> ApplyReport:
        """Make the kernel follow one batch, atomically for policy. Traffic sees the old state or the new one. What
        fails stays wanted, also when this raises: the next apply tries it again. Of active workloads with one interface
        the first by its key's path is in force, and the others are losers."""

    @abc.abstractmethod
    def resync(self) -> ApplyReport:
        """Read the kernel, compare with what is wanted, repair; ``healed`` names what had been changed."""

    @abc.abstractmethod
    def interface_changed(self, event: InterfaceEvent) -> ApplyReport:
        """A link came, went or changed: program what depends on it (routes)."""

    @abc.abstractmethod
    def watch_interfaces(self, callback: Callable[[InterfaceEvent], None]) -> Callable[[], None]:
        """Call back, in a thread of the driver's, for each change of a host link. Returns what stops it."""

    @abc.abstractmethod
    def wiring(self) -> WorkloadWiring: ...

    def watch_addresses(self, callback: Callable[[str, frozenset[IPAddress] | None], None]) -> Callable[[], None]:
        """Call back with the name and all addresses of each interface that is no workload's: of those that are there
        before this returns, then, in a thread of the driver's, whenever they change; None: it is gone. Returns what
        stops it."""
        del callback
        return lambda: None

    def watch_denied(self, callback: Callable[[DeniedPacket], None]) -> Callable[[], None]:
        """Call back, in a thread of the driver's, for each denied packet (a share of them when there are too many).
        Returns what stops it; nobody listening costs the kernel next to nothing."""
        del callback
        return lambda: None

    def rule_counts(self) -> tuple[RuleCount, ...]:
        """What each rule has matched since it was last written."""
        return ()

    def figures(self) -> tuple[Figure, ...]:
        """What it has done and holds. Any thread, and no look at the kernel."""
        return ()

    def wanted(self) -> HostState:
        """A copy of what the batches add up to; its values are shared."""
        return HostState()

    def interfaces_down(self) -> frozenset[str]:
        """Interfaces of workloads which share an address that are not up, or not there: another one has the address
        meanwhile. Any thread."""
        return frozenset()

    def connections(self) -> tuple[Connection, ...]:
        """What the kernel tracks now. Any thread."""
        return ()

    def cut(self, connections: Iterable[Connection]) -> int:
        """Forget these connections: their next packet is judged anew. How many were there. Any thread."""
        del connections
        return 0

    @abc.abstractmethod
    def purge(self) -> None:
        """Remove everything of ours from the kernel (policy table, routes of our protocol)."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free sockets; the kernel keeps enforcing."""


class WorkloadWiring(abc.ABC):
    """Makes the interfaces of workloads. Safe for several threads."""

    @abc.abstractmethod
    def attach(self, request: WiringRequest) -> WiredInterface:
        """Make the pair, its addresses, routes and sysctls on both sides. Equal to what stands: no change.
        On failure everything made in this call is undone. Raises ``NamespaceGone``, ``InterfaceTaken``,
        ``RouteTaken``, ``KernelRefused``."""

    @abc.abstractmethod
    def detach(self, interface: str) -> None:
        """Delete the host end (its peer and routes go with it). Absent is fine."""

    @abc.abstractmethod
    def check(self, request: WiringRequest) -> tuple[str, ...]:
        """What is missing or different, as sentences; empty when all is as :meth:`attach` left it."""

    @abc.abstractmethod
    def host_end(self, namespace_fd: int, container_interface: str) -> str | None:
        """The host's end of a container's interface, whoever made the pair; None when there is none."""

    @abc.abstractmethod
    def make_pair(self, request: PairRequest) -> WiredInterface:
        """Make a pair whose container end stays in the host namespace, both ends up, host routes and sysctls set.
        A leftover of the same name is replaced."""

    @abc.abstractmethod
    def orphans(self) -> Mapping[str, int]:
        """Host ends of pairs that :meth:`attach` made, whose other end lies where no process runs; each with what
        :meth:`remove_orphans` knows it by. A container that is not yet started looks like that."""

    @abc.abstractmethod
    def remove_orphans(self, indexes: Collection[int]) -> None:
        """Delete them, and none that has taken a name of theirs since. Absent is fine."""

    @abc.abstractmethod
    def exists(self, interface: str) -> bool: ...

    @abc.abstractmethod
    def routes(self, interface: str) -> tuple[IPNetwork, ...]:
        """Host routes through the interface, for diagnosis."""

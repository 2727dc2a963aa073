"""The host's part in encapsulated pools: its tunnel addresses, its devices, its routes to the other hosts' blocks.

One thread, level-triggered. As long as no pool is encapsulated it follows the pools only; the first one that is makes
it follow blocks and hosts too. Tunnel addresses are judged anew with every change of a pool: kept in a pool that still
wants them, given back otherwise. Source: node specification 1.2 (step 11) and 2.2, ipam specification 7.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from netaddr import IPAddress

from calico_core.dataplane.linux.tunnels import Tunnels, Uplink
from calico_core.datastore.syncer import SyncBatch, Syncer, SyncStatus
from calico_core.errors import CalicoError, NoPools
from calico_core.interfaces.datastore import Delete, Operation, Put, Records
from calico_core.interfaces.ipam import Companion, Ipam
from calico_core.log import get_logger
from calico_core.model.addresses import contains
from calico_core.model.keys import BGP_HOSTS, BLOCKS, POOLS
from calico_core.model.pools import Pool
from calico_core.model.tunnels import TUNNELS, HostTunnels, TunnelId
from calico_core.model.workloads import AddressRequest
from calico_core.node.busy import Busy
from calico_core.node.held_deletions import HeldDeletions
from calico_core.node.mailbox import Mailbox
from calico_core.policy.tunnel_routes import TunnelTable

log = get_logger(__name__)

_MIN_INTERVAL_S = 0.1
_RETRY_S = 5.0
_ASK_AGENT_S = 0.5
_ASSIGN_DEADLINE_S = 10.0


class _Post(NamedTuple):
    source: str
    batch: SyncBatch


class TunnelKeeper:
    """``addresses`` are the host's own, one a family. ``refresh_interval_s`` is how often the kernel is read again
    though nothing changed; 0 or less: never. ``mtu_interfaces``: a pattern for names of interfaces that show the MTU of
    the network; empty: those of the addresses do. ``on_mtu`` hears :attr:`workload_mtu_bytes` with each look.
    ``trusts_store``: the agent's word on the datastore. Without it nothing that stands is taken away, and nothing is
    begun with."""

    def __init__(
        self,
        *,
        records: Records,
        ipam: Ipam,
        host: str,
        addresses: Iterable[IPAddress],
        refresh_interval_s: float,
        mtu_interfaces: str = "",
        on_mtu: Callable[[int | None], None] = lambda _mtu_bytes: None,
        kernel: Tunnels | None = None,
        trusts_store: Callable[[], bool] = lambda: True,
    ) -> None:
        self._records, self._ipam, self._host = records, ipam, host
        self._addresses = tuple(addresses)
        self._kernel = kernel or Tunnels()
        self._refresh_interval_s = refresh_interval_s
        self._mtu_interfaces = mtu_interfaces
        self._on_mtu = on_mtu
        self._table = TunnelTable(host, self._addresses)
        self._trusts_store = trusts_store
        self._deletions = HeldDeletions(trusts_store)
        self._has_begun = False
        self._mailbox: Mailbox[_Post] = Mailbox()
        self._syncers = {"pools": self._follow("pools", (POOLS,))}
        self._in_sync: set[str] = set()
        self._busy = Busy()
        self._thread = threading.Thread(target=self._run, name="tunnels", daemon=True)
        self._stopping = threading.Event()
        self._has_judged = threading.Event()
        self._applied: HostTunnels | None = None
        self._judged: tuple[object, ...] | None = None
        self._reasons: tuple[str, ...] = ()
        self._workload_mtu_bytes: int | None = None

    def start(self) -> None:
        self._thread.start()
        self._syncers["pools"].start()

    def stop(self) -> None:
        """The kernel keeps what it has."""
        self._stopping.set()
        for syncer in tuple(self._syncers.values()):
            syncer.stop()
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(10)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and all(syncer.is_alive for syncer in tuple(self._syncers.values()))

    @property
    def last_error(self) -> str:
        return "; ".join(self._reasons)

    @property
    def workload_mtu_bytes(self) -> int | None:
        """What a workload's interface may have so that its packets fit into every tunnel; None: the kernel's own."""
        return self._workload_mtu_bytes

    def wait_judged(self, timeout_s: float) -> bool:
        """Until the pools were looked at once."""
        return self._has_judged.wait(timeout_s)

    def status(self) -> dict[str, object]:
        """For people and programs: JSON-ready."""
        applied = self._applied or HostTunnels()
        return {
            "devices": {device.name: str(device.address or "") for device in applied.devices},
            "peers": len(applied.peers),
            "routes": len(applied.routes),
            "workload_mtu_bytes": self._workload_mtu_bytes,
            "last_error": self.last_error,
        }

    # --- the thread ----------------------------------------------------------------------------------

    @property
    def busy_s(self) -> float:
        """How long the pass under way takes already; 0: there is none."""
        return self._busy.seconds

    def _run(self) -> None:
        refresh_s = self._refresh_interval_s if self._refresh_interval_s > 0 else math.inf
        refresh_at = time.monotonic() + refresh_s
        retry_at = math.inf
        while not self._mailbox.is_closed:
            due = min(refresh_at, retry_at)
            wake_at = min(due, self._deletions.next_look() or math.inf)
            posts = self._mailbox.take(None if wake_at == math.inf else max(wake_at - time.monotonic(), 0.0))
            news = [self._take(*post) for post in posts]
            news.append(self._table.apply(self._deletions.look(time.monotonic())))
            is_due = time.monotonic() >= due
            if "pools" not in self._in_sync or self._mailbox.is_closed or not (is_due or any(news)):
                if is_due:
                    refresh_at = time.monotonic() + refresh_s
                continue
            with self._busy.turn():
                has_succeeded = self._pass(is_due=is_due)
            if is_due:
                refresh_at = time.monotonic() + refresh_s
            retry_s = math.inf if has_succeeded else _RETRY_S
            retry_at = time.monotonic() + (retry_s if self._has_begun else _ASK_AGENT_S)
            if posts:
                self._stopping.wait(_MIN_INTERVAL_S)

    def _take(self, source: str, batch: SyncBatch) -> bool:
        """Whether there is anything to do about it."""
        has_news = self._table.apply(self._deletions.pass_on(batch.updates, time.monotonic()))
        if batch.status is SyncStatus.IN_SYNC and source not in self._in_sync:
            self._in_sync.add(source)
            has_news = True
        return has_news

    def _pass(self, *, is_due: bool) -> bool:
        """Whether all is as wanted. ``is_due``: the kernel is looked at even if nothing changed."""
        try:
            reasons = self._align(is_due=is_due)
        except CalicoError as error:
            reasons = (str(error),)
        if reasons != self._reasons:
            for reason in reasons:
                log.error("tunnels.failed", reason=reason)
        self._reasons = reasons
        return not reasons

    def _align(self, *, is_due: bool) -> tuple[str, ...]:
        pools = self._table.encapsulated_pools()
        uplinks = self._kernel.uplinks(self._addresses)
        self._workload_mtu_bytes = self._room(pools, uplinks)
        self._on_mtu(self._workload_mtu_bytes)
        self._has_judged.set()
        if pools and "hosts" not in self._syncers and not self._stopping.is_set():
            self._syncers["hosts"] = self._follow("hosts", (BLOCKS, BGP_HOSTS))
            self._syncers["hosts"].start()
        self._has_begun = self._has_begun or self._trusts_store()
        if not self._has_begun:
            return ()
        reasons = self._judge_addresses(pools)
        if pools and "hosts" not in self._in_sync:
            return reasons  # nothing is removed on half a view
        state = self._table.state(uplink.subnet for uplink in uplinks.values())
        if state == self._applied and not is_due and not self._reasons:
            return reasons
        report = self._kernel.sync(state, None if is_due or self._reasons else self._applied)
        for change in report.changed:
            # what was applied and is not as it was has been changed by somebody else
            event = "tunnels.healed" if state == self._applied else "tunnels.changed"
            log.info(event, change=change)
        self._applied = state
        return (*reasons, *(f"{failure.subject}: {failure.reason}" for failure in report.failures))

    def _room(self, pools: Iterable[TunnelId], uplinks: Mapping[IPAddress, Uplink]) -> int | None:
        """For the packets of workloads; None: nothing says so."""
        network = min(self._kernel.mtus(self._mtu_interfaces).values(), default=None) if self._mtu_interfaces else None
        if network is not None:
            return network - max((tunnel.overhead_bytes for tunnel in pools), default=0)
        room = [
            uplink.mtu_bytes - tunnel.overhead_bytes
            for tunnel in pools
            for address, uplink in uplinks.items()
            if address.version == tunnel.version
        ]
        return min(room, default=None)

    def _follow(self, source: str, prefixes: tuple[str, ...]) -> Syncer:
        def sink(batch: SyncBatch) -> None:
            self._mailbox.post(_Post(source, batch))

        return Syncer(self._records.store, prefixes, sink, name=f"sync-tunnel-{source}")

    # --- tunnel addresses ------------------------------------------------------------------------------

    def _judge_addresses(self, pools: dict[TunnelId, tuple[Pool, ...]]) -> tuple[str, ...]:
        """Reasons for those that cannot be had. Reads the store only when a pool or an address of ours changed."""
        held = tuple(self._table.tunnel_address(tunnel, self._host) for tunnel in TUNNELS)
        basis = (pools, held)
        if basis == self._judged:
            return ()
        reasons: list[str] = []
        for tunnel in TUNNELS:
            try:
                self._judge_address(tunnel, pools.get(tunnel, ()))
            except CalicoError as error:
                reasons.append(f"tunnel address of {tunnel.device}: {error}")
        self._judged = None if reasons else basis
        return tuple(reasons)

    def _judge_address(self, tunnel: TunnelId, pools: tuple[Pool, ...]) -> None:
        handle = tunnel.handle(self._host)
        held = self._ipam.by_handle(handle)
        if held and not all(any(contains(pool.cidr, address) for pool in pools) for address in held):
            self._ipam.release_by_handle([handle], self._withdrawal(tunnel))
            log.info("tunnels.address_released", device=tunnel.device, addresses=held)
            held = ()
        if not pools:
            if self._records.get(tunnel.address_key(self._host)) is not None:
                self._ipam.release_by_handle([handle], self._withdrawal(tunnel))
            return
        published = self._records.get(tunnel.address_key(self._host))
        if held and published is not None and published.record == str(held[0]):
            return
        usable = tuple(pool.cidr for pool in pools if pool.gives("Tunnel"))
        if not held and not usable:
            raise NoPools(tunnel.version, tuple(str(pool.cidr) for pool in pools))
        request = AddressRequest(
            handle=handle,
            num_v4=1 if tunnel.version == 4 else 0,
            num_v6=1 if tunnel.version == 6 else 0,
            pools_v4=usable if tunnel.version == 4 else (),
            pools_v6=usable if tunnel.version == 6 else (),
            use="Tunnel",
            attributes={"node": self._host, "type": f"{tunnel.kind}TunnelAddress"},
        )
        addresses = self._ipam.auto_assign(
            request, lambda chosen: self._publication(tunnel, chosen), deadline_s=_ASSIGN_DEADLINE_S
        )
        if addresses != held:
            log.info("tunnels.address_assigned", device=tunnel.device, addresses=addresses)

    def _publication(self, tunnel: TunnelId, addresses: tuple[IPAddress, ...]) -> Companion:
        operations: list[Operation] = [Put(tunnel.address_key(self._host).path, str(addresses[0]).encode())]
        key, mac = tunnel.mac_key(self._host), tunnel.mac(self._host)
        if key is not None:
            operations.append(Put(key.path, str(mac).encode()))
        return Companion(operations=tuple(operations))

    def _withdrawal(self, tunnel: TunnelId) -> Companion:
        keys = (tunnel.address_key(self._host), tunnel.mac_key(self._host))
        return Companion(operations=tuple(Delete(key.path) for key in keys if key is not None))

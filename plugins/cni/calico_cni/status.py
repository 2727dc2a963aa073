"""STATUS: would an ADD be served, and is the policy of what runs already in force? Source: cni specification 6."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterable

from netaddr import AddrFormatError, IPNetwork

from calico_cni.errors import ExistingLimited, NotAvailable
from calico_cni.wire import IpamConfiguration
from calico_core.errors import DatastoreError, StoreNotReady
from calico_core.interfaces.datastore import Records
from calico_core.interfaces.integration import IntegrationContext
from calico_core.model.blocks import Block
from calico_core.model.hosts import DATAPLANE_FAILED
from calico_core.model.keys import BLOCKS, POOLS, FelixLastStatusKey, NodeStatusKey, ReadyKey
from calico_core.model.pools import Pool

HEARTBEAT_S = 90.0
TEST_S = 2.0


def check_datastore(context: IntegrationContext) -> None:
    """:raises NotAvailable: the datastore is away, or not ready for use."""
    try:
        ready = context.records.get(ReadyKey())
    except DatastoreError as error:
        raise NotAvailable(str(error)) from error
    if ready is None or ready.record != "true":
        raise NotAvailable(f"{ReadyKey().path} is not true: the datastore is not ready for use")


def require_ready(records: Records) -> None:
    """:raises StoreNotReady: nothing may be assigned or released now; :raises Unavailable: nobody can say."""
    ready = records.get(ReadyKey())
    if ready is None or ready.record != "true":
        raise StoreNotReady(f"{ReadyKey().path} in the datastore is not 'true'")


def check_datastore_soon(context: IntegrationContext) -> None:
    """As :func:`check_datastore`, and an answer that takes longer than two seconds is none."""
    failures: list[BaseException | None] = []

    def ask() -> None:
        try:
            check_datastore(context)
            failures.append(None)
        except BaseException as error:
            failures.append(error)

    asking = threading.Thread(target=ask, name="test", daemon=True)
    asking.start()
    asking.join(TEST_S)
    if not failures:
        raise NotAvailable(f"the datastore does not answer within {TEST_S:g} s")
    if failures[0] is not None:
        raise failures[0]


def check_agent(context: IntegrationContext) -> None:
    """:raises ExistingLimited: no policy is programmed now. A node that reports nothing is believed."""
    if context.settings.reporting_interval_s <= 0:
        return
    found = context.records.get(FelixLastStatusKey(context.host))
    if found is None:
        return
    now = dt.datetime.now(dt.UTC)
    try:
        age_s = (now - dt.datetime.fromisoformat(found.record.time)).total_seconds()
    except ValueError:
        return
    # a setting may make the heart beat more slowly than the specification knows
    limit_s = max(HEARTBEAT_S, 3 * context.settings.reporting_interval_s)
    if age_s > limit_s:
        raise ExistingLimited(f"the agent's last sign of life is {age_s:.0f} s old")
    status = context.records.get(NodeStatusKey(context.host))
    failed = status.record.failed_checks if status is not None else ()
    for reason in failed:
        if reason.startswith(DATAPLANE_FAILED):
            raise ExistingLimited(reason)
    # the first report may be of before the first programming, and the next one comes an interval later
    if not found.record.first_update and found.record.uptime > context.settings.reporting_interval_s:
        raise ExistingLimited(f"the agent has not programmed the policy in {found.record.uptime:.0f} s")


def check_addresses(records: Records, ipam: IpamConfiguration) -> None:
    """:raises NotAvailable: a family that is wanted has no pool, or no address is left in those that may be used."""
    pools = [found.record for found in records.list(POOLS) if found.record.gives("Workload")]
    blocks = [found.record for found in records.list(BLOCKS)]
    for version, is_wanted, named in (
        (4, ipam.assign_ipv4, ipam.ipv4_pools),
        (6, ipam.assign_ipv6, ipam.ipv6_pools),
    ):
        if not is_wanted:
            continue
        usable = [pool for pool in pools if pool.cidr.version == version and _is_named(pool, named)]
        if not usable:
            raise NotAvailable(f"no IPv{version} pool is enabled" + (f" of {', '.join(named)}" if named else ""))
        if not any(_has_room(pool, blocks) for pool in usable):
            raise NotAvailable(f"no IPv{version} address is left in {', '.join(str(pool.cidr) for pool in usable)}")


def _is_named(pool: Pool, named: tuple[str, ...] | None) -> bool:
    """A name that is not a network is refused when an address is asked for."""
    return not named or str(pool.cidr) in {_normalised(text) for text in named}


def _normalised(text: str) -> str:
    try:
        return str(IPNetwork(text).cidr)
    except (ValueError, AddrFormatError):
        return text


def _has_room(pool: Pool, blocks: Iterable[Block]) -> bool:
    """A free address in a block, or a block that nobody has claimed."""
    inside = [block for block in blocks if block.cidr.version == pool.cidr.version and block.cidr in pool.cidr]
    return len(inside) < 1 << (pool.block_prefix - pool.cidr.prefixlen) or any(block.unallocated for block in inside)

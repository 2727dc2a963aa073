"""What a host writes before it works: pools, defaults, its own record, readiness. Source: node specification 1.4.

Every write is safe to repeat and to race with other hosts: creations are compare-and-create in one transaction.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from netaddr import IPAddress

from calico_core.errors import Conflict, InvalidRecord, InvalidSettings, Unavailable
from calico_core.files import replace_file
from calico_core.interfaces.datastore import Compare, Delete, NoneNewer, Operation, Precondition, Put, Records, absent
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.model.addresses import parse_network
from calico_core.model.bgp import DEFAULT_AS, NodeMesh, parse_as_number
from calico_core.model.hosts import NODE_STOPPED, AddressClaim
from calico_core.model.ids import check_name
from calico_core.model.keys import (
    AddressClaimKey,
    BgpGlobalAsKey,
    BgpHostAddressKey,
    BgpHostAsKey,
    BgpMeshKey,
    GlobalConfigKey,
    HostConfigKey,
    HostIpKey,
    Key,
    NodeStatusKey,
    PoolKey,
    ReadyKey,
)
from calico_core.model.pools import Pool
from calico_core.settings import Settings

log = get_logger(__name__)

_ATTEMPTS = 5
_LOOK_EVERY_S = 0.1
_DEFAULTS: tuple[tuple[Key, str], ...] = (
    (GlobalConfigKey("InterfacePrefix"), "cali"),
    (GlobalConfigKey("LogSeverityFile"), "none"),
    (GlobalConfigKey("LogSeverityScreen"), "info"),
    (GlobalConfigKey("LogFilePath"), "none"),
    (GlobalConfigKey("IpInIpEnabled"), "false"),
    (BgpGlobalAsKey(), str(DEFAULT_AS)),
)


def wait_for_store(records: Records, stop: threading.Event, *, on_away: Callable[[], object] = lambda: None) -> bool:
    """Until the datastore answers, without limit; each change of reason is logged once. False when stopped. ``on_away``
    hears each time that it does not."""
    reason = ""
    while not stop.is_set():
        try:
            records.store.identity()
            return True
        except Unavailable as error:
            if str(error) != reason:
                reason = str(error)
                log.warning("datastore.waiting", reason=reason)
            on_away()
            stop.wait(1.0)
    return False


def wait_for_policy(wait_in_sync: Callable[[float], bool], stop: threading.Event, timeout_s: float) -> bool:
    """Until the first complete state is in the kernel; at the longest until the node is to stop, as it is for settings
    that the agent does not begin without."""
    deadline = time.monotonic() + timeout_s
    while not stop.is_set() and (left_s := deadline - time.monotonic()) > 0:
        if wait_in_sync(min(left_s, _LOOK_EVERY_S)):
            return True
    return False


def register_host(
    records: Records, *, host: str, ipv4: IPAddress | None, ipv6: IPAddress | None, settings: Settings
) -> None:
    """All records of a start, in order. Raises ``InvalidSettings`` when another host holds an address of ours."""
    check_name(host, field="node_name")
    ensure_pools(records, settings, has_ipv6=Path("/proc/sys/net/ipv6").exists())
    ensure_defaults(records)
    claim_host(records, host=host, ipv4=ipv4, ipv6=ipv6, settings=settings)
    records.put(ReadyKey(), "true")


def remember_name(settings: Settings, host: str) -> None:
    """For a start at which nobody says it. A disk that is full keeps nobody from starting."""
    file, content = Path(settings.state_directory, "nodename"), f"{host}\n".encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_bytes() != content:
            replace_file(file, content, 0o644)
    except OSError as error:
        log.warning("node.name_not_remembered", file=str(file), reason=error.strerror or str(error))


def ensure_pools(records: Records, settings: Settings, *, has_ipv6: bool) -> None:
    """A default pool for each family that has none, unless switched off."""
    if settings.no_default_pools:
        return
    for version, cidr in ((4, settings.pool_v4), (6, settings.pool_v6)):
        if cidr.lower() == "none" or (version == 6 and not has_ipv6):
            continue
        network = parse_network(cidr, field=f"pool_v{version}", version=version)
        prefix = f"/calico/v1/ipam/v{version}/pool/"
        snapshot = records.store.list(prefix)
        if snapshot.entries:
            continue
        key = PoolKey(network)
        pool = Pool(cidr=network, masquerade=version == 4 and settings.pool_v4_nat_outgoing)
        preconditions: list[Precondition] = [absent(key.path), NoneNewer(prefix, snapshot.revision)]
        if records.store.transact(preconditions, [Put(key.path, codec.encode(pool))]).committed:
            log.info("pool.created", cidr=network)


def ensure_defaults(records: Records) -> None:
    """Values of the reference system, where nobody has set anything."""
    for key, value in _DEFAULTS:
        records.store.transact([absent(key.path)], [Put(key.path, value.encode())])
    mesh = BgpMeshKey()
    records.store.transact([absent(mesh.path)], [Put(mesh.path, codec.encode(NodeMesh()))])


def claim_host(
    records: Records, *, host: str, ipv4: IPAddress | None, ipv6: IPAddress | None, settings: Settings
) -> None:
    """Host record and address claims in one transaction, so that two hosts never hold one address.

    Raises ``InvalidSettings`` when a live host holds one, ``Conflict`` when races were lost again and again."""
    for _attempt in range(_ATTEMPTS):
        if _try_claim(records, host, ipv4, ipv6, settings):
            return
    raise Conflict(HostIpKey(host).path, None)


def _try_claim(records: Records, host: str, ipv4: IPAddress | None, ipv6: IPAddress | None, settings: Settings) -> bool:
    claims = [AddressClaimKey(address) for address in (ipv4, ipv6) if address is not None]
    preconditions: list[Precondition] = []
    operations: list[Operation] = []
    for claim in claims:
        preconditions.append(_claimable(records, claim, host))
        record = AddressClaim(host=host, token=_machine_token())
        operations.append(Put(claim.path, codec.encode(record)))
    operations += _stale_claims(records, host, claims)
    for version, address in ((4, ipv4), (6, ipv6)):
        text = str(address) if address is not None else ""
        operations.append(Put(BgpHostAddressKey(host, version).path, text.encode()))
    if ipv4 is not None:
        operations.append(Put(HostIpKey(host).path, str(ipv4).encode()))
    operations.append(_as_number(host, settings))
    operations.append(Put(HostConfigKey(host, "marker").path, b"created"))
    return records.store.transact(preconditions, operations).committed


def _claimable(records: Records, claim: AddressClaimKey, host: str) -> Compare:
    current = records.get(claim)
    if current is None:
        return absent(claim.path)
    holder = current.record.host
    if holder != host and _is_live(records, holder):
        raise InvalidSettings(
            "ip", "address claims", f"{claim.ip} is in use by host {holder!r}; give this host another address"
        )
    return Compare(claim.path, current.mod_revision)


def _is_live(records: Records, host: str) -> bool:
    """Whether a node reports for it: the status of a dead one goes with its lease, a stopped one says so."""
    try:
        status = records.get(NodeStatusKey(host))
    except InvalidRecord:
        return True  # of a version we do not know: do not take its address
    return status is not None and status.record.state != NODE_STOPPED


def _stale_claims(records: Records, host: str, kept: list[AddressClaimKey]) -> list[Operation]:
    """Claims of ours on addresses that we no longer have."""
    paths = {claim.path for claim in kept}
    return [
        Delete(found.key.path)
        for found in records.list("/calico/node/v1/address/")
        if found.record.host == host and found.key.path not in paths
    ]


def _as_number(host: str, settings: Settings) -> Operation:
    key = BgpHostAsKey(host)
    if not settings.as_number:
        return Delete(key.path)
    return Put(key.path, str(parse_as_number(settings.as_number, field="as_number")).encode())


def _machine_token() -> str:
    parts = []
    for path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        try:
            parts.append(Path(path).read_text().strip())
        except OSError:
            parts.append("")
    return ".".join(parts)

"""An online check of address management: every invariant that can be read, as findings. Pure.

Store against itself, then (given a :class:`LocalView`) store against one host's kernel and its integrations' lists.
Source: ipam specification 9 and 12.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, Literal

from netaddr import IPAddress, IPNetwork

from calico_core.ipam import blocks
from calico_core.ipam.draft import handle_blocks
from calico_core.ipam.store_view import addresses_of
from calico_core.model.addresses import contains
from calico_core.model.keys import AffinityKey, HandleKey, WorkloadEndpointKey
from calico_core.model.record import Value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from calico_core.interfaces.datastore import Versioned
    from calico_core.ipam.local_view import LocalView
    from calico_core.ipam.store_view import Held, StoreView
    from calico_core.model.blocks import Affinity, Block
    from calico_core.model.endpoints import WorkloadEndpoint

Severity = Literal["error", "warning", "info"]

HEAL = "calicoctl ipam heal"
_LEAKED = "calicoctl ipam release --leaked"
_BY_HAND = "by hand: nothing of ours writes a record that does not decode"

CODES: Final[dict[str, tuple[Severity, str]]] = {
    "record-malformed": ("error", _BY_HAND),
    "blocks-overlap": ("error", "move the workloads of one block, then remove its pool"),
    "address-held-twice": ("error", "attach one of the two workloads anew"),
    "endpoints-share-address": ("error", "attach one of the workloads anew, with another address"),
    "endpoint-address-free": ("error", HEAL),
    "endpoint-address-of-other": ("error", "attach the workload anew: somebody else was given its address"),
    "handle-count-mismatch": ("error", HEAL),
    "handle-missing": ("error", HEAL),
    "handle-empty": ("warning", HEAL),
    "address-without-handle": ("warning", "calicoctl ipam release ADDRESS, when nobody uses it"),
    "address-without-endpoint": ("warning", _LEAKED),
    "address-unproven": ("info", "none: an address plugin may use it without an endpoint"),
    "address-borrowed": ("info", "none, unless the owner's network filters /32 routes"),
    "attributes-unused": ("warning", "none: the next write of the block drops them"),
    "affinity-without-block": ("warning", HEAL),
    "affinity-of-other-host": ("error", HEAL),
    "affinity-unconfirmed": ("warning", HEAL),
    "block-without-affinity": ("warning", HEAL),
    "block-outside-pools": ("warning", "add a pool around it again, or detach its workloads"),
    "block-of-other-size": ("warning", "move its workloads: it was cut for a pool of another block size"),
    "block-empty-ownerless": ("warning", HEAL),
    "host-over-limit": ("info", "none: no further block is claimed until the number is below the limit"),
    "endpoint-without-interface": ("warning", "delete the container, or let the node's collector do it"),
    "endpoint-without-route": ("warning", "calicoctl node status tells why the node does not program it"),
    "interface-without-endpoint": ("warning", "delete the container; it has no policy and no connectivity"),
    "route-without-endpoint": ("warning", "the node removes such routes with its next refresh"),
    "listed-address-free": ("error", "attach the workload anew before its address is given to another"),
}
"""Every code with its severity and what to do."""


class Finding(Value, frozen=True):
    """``object`` is what the finding is about: an address, a block, a handle, the path of an endpoint …"""

    code: str
    severity: Severity
    object: str
    detail: str
    fix: str


def check(store: StoreView, local: LocalView | None = None) -> tuple[Finding, ...]:
    """Errors first, then by code and object. Without ``local`` nothing is said of kernels and lists."""
    found = list(_findings(store, local))
    order: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}
    return tuple(sorted(found, key=lambda finding: (order[finding.severity], finding.code, finding.object)))


def _findings(store: StoreView, local: LocalView | None) -> Iterator[Finding]:
    for path, reason in store.malformed.items():
        yield finding("record-malformed", path, reason)
    yield from _overlaps(store)
    for found in store.blocks:
        yield from _inside(found.record)
        yield from _of_pools(found.record, store)
    yield from _affinities(store)
    yield from _handles(store)
    yield from _endpoints(store, local)
    if local is not None:
        yield from _kernel(store, local)
        yield from _lists(store, local)


def finding(code: str, subject: object, detail: str) -> Finding:
    severity, fix = CODES[code]
    return Finding(code=code, severity=severity, object=str(subject), detail=detail, fix=fix)


# --- blocks ----------------------------------------------------------------------------------------


def _overlaps(store: StoreView) -> Iterator[Finding]:
    ordered = sorted((found.record for found in store.blocks), key=lambda block: block.cidr)
    for position, left in enumerate(ordered):
        for right in ordered[position + 1 :]:
            if left.cidr.version != right.cidr.version or left.cidr.last < right.cidr.first:
                break
            yield finding("blocks-overlap", left.cidr, f"and {right.cidr} hold the same addresses")
    holders: defaultdict[IPAddress, list[Held]] = defaultdict(list)
    for held in store.held():
        holders[held.address].append(held)
    for address, several in holders.items():
        if len(several) > 1:
            who = " and ".join(f"{held.handle or 'nobody known'} (block {held.block.cidr})" for held in several)
            yield finding("address-held-twice", address, f"by {who}")


def _inside(block: Block) -> Iterator[Finding]:
    """What decoding does not refuse already."""
    used = {index for index in block.allocations if index is not None}
    if used != set(range(len(block.attributes))):
        yield finding("attributes-unused", block.cidr, f"{len(block.attributes) - len(used)} attributes of nobody")
    if block.is_empty and not block.affinity:
        yield finding("block-empty-ownerless", block.cidr, "holds no address and belongs to no host")


def _of_pools(block: Block, store: StoreView) -> Iterator[Finding]:
    around = [
        found.record
        for found in store.pools
        if found.record.cidr.version == block.cidr.version
        and found.record.cidr.first <= block.cidr.first
        and block.cidr.last <= found.record.cidr.last
    ]
    if not around:
        yield finding("block-outside-pools", block.cidr, f"belongs to {block.owner or 'no host'}, but to no pool")
    elif all(pool.block_prefix != block.cidr.prefixlen for pool in around):
        pool = around[0]
        yield finding("block-of-other-size", block.cidr, f"blocks of pool {pool.cidr} are /{pool.block_prefix}")


def _affinities(store: StoreView) -> Iterator[Finding]:
    standing = {found.record.cidr: found.record for found in store.blocks}
    malformed = store.malformed_blocks
    named: set[tuple[str, IPNetwork]] = set()
    for found in store.affinities:
        key = affinity_key(found)
        named.add((key.host, key.cidr))
        block = standing.get(key.cidr)
        if not _is_confirmed(found.record):
            state = "deleted" if found.record.deleted else found.record.state
            yield finding("affinity-unconfirmed", key.path, f"is {state}: a claim of other software was left half done")
        elif block is None:
            if key.cidr not in malformed:
                yield finding("affinity-without-block", key.path, f"{key.host} has a claim on {key.cidr}, no block")
        elif block.owner != key.host:
            yield finding(
                "affinity-of-other-host", key.path, f"the block {key.cidr} belongs to {block.owner or 'no host'}"
            )
    owned: Counter[tuple[str, int]] = Counter()
    for cidr, block in standing.items():
        if block.owner is None:
            continue
        owned[block.owner, cidr.version] += 1
        if (block.owner, cidr) not in named:
            yield finding("block-without-affinity", cidr, f"belongs to {block.owner}, which has no record of it")
    limit = store.config.max_blocks_per_host
    for (host, version), number in owned.items():
        if limit and number > limit:
            yield finding("host-over-limit", host, f"has {number} IPv{version} blocks, the limit is {limit}")


def affinity_key(found: Versioned[Affinity]) -> AffinityKey:
    assert isinstance(found.key, AffinityKey)
    return found.key


def endpoint_key(found: Versioned[WorkloadEndpoint]) -> WorkloadEndpointKey:
    assert isinstance(found.key, WorkloadEndpointKey)
    return found.key


def _is_confirmed(affinity: Affinity) -> bool:
    return affinity.state == "confirmed" and not affinity.deleted


# --- handles ---------------------------------------------------------------------------------------


def handle_counts(store: StoreView) -> dict[str, dict[IPNetwork, int]]:
    """What the blocks say each handle holds: they are the truth, handles are an index."""
    counted: defaultdict[str, dict[IPNetwork, int]] = defaultdict(dict)
    for found in store.blocks:
        for handle, number in blocks.counts(found.record).items():
            counted[handle.split("\r", 1)[0]][found.record.cidr] = number
    return dict(counted)


def _handles(store: StoreView) -> Iterator[Finding]:
    counted, unknown = handle_counts(store), store.malformed_blocks
    recorded: set[str] = set()
    for found in store.handles:
        assert isinstance(found.key, HandleKey)
        name = found.key.handle
        recorded.add(name.split("\r", 1)[0])
        truth = {str(cidr): number for cidr, number in counted.get(name.split("\r", 1)[0], {}).items()}
        named = handle_blocks(found.record)
        said = {str(cidr): found.record.block.get(str(cidr), 0) for cidr in named if cidr not in unknown}
        if len(said) < len(named) and not truth:
            continue
        if not truth:
            yield finding("handle-empty", name, f"counts {sum(said.values())} addresses, and no block has any of it")
        elif {block: count for block, count in said.items() if count} != truth:
            yield finding("handle-count-mismatch", name, f"counts {_text(said)}, the blocks hold {_text(truth)}")
    malformed = {path.rpartition("/")[2] for path in store.malformed}
    for name, per_block in counted.items():
        if name not in recorded and HandleKey(name).path.rpartition("/")[2] not in malformed:
            yield finding("handle-missing", name, f"has no record, the blocks hold {_text(per_block)}")
    for held in store.held():
        if held.handle is None:
            yield finding("address-without-handle", held.address, f"is assigned in {held.block.cidr} to nobody known")


def _text(counts: dict[str, int] | dict[IPNetwork, int]) -> str:
    return ", ".join(f"{number} in {block}" for block, number in counts.items()) or "nothing"


# --- endpoints -------------------------------------------------------------------------------------


def _endpoints(store: StoreView, local: LocalView | None) -> Iterator[Finding]:
    carriers: defaultdict[IPAddress, list[WorkloadEndpointKey]] = defaultdict(list)
    for found in store.endpoints:
        for address in addresses_of(found.record):
            carriers[address].append(endpoint_key(found))
    named = {found.record.name for found in store.endpoints}
    held = {each.address: each for each in store.held()}
    for address, keys in carriers.items():
        paths = " and ".join(_short(key) for key in keys)
        if len(keys) > 1:
            yield finding("endpoints-share-address", address, f"is carried by {paths}")
        holder = held.get(address)
        if holder is None:
            if _is_managed(address, store):
                yield finding("endpoint-address-free", address, f"is carried by {paths}, and may be given to another")
        elif holder.host is not None and holder.host not in {key.host for key in keys}:
            yield finding(
                "endpoint-address-of-other", address, f"is carried by {paths}, and was given to {_holder(holder)}"
            )
    for each in held.values():
        if each.host is not None and each.block.owner not in {None, each.host}:
            yield finding("address-borrowed", each.address, f"used on {each.host} from a block of {each.block.owner}")
        if each.address not in carriers:
            yield from _unused(each, store, local, named)


def _unused(held: Held, store: StoreView, local: LocalView | None, named: set[str]) -> Iterator[Finding]:
    """An assigned address that no endpoint carries."""
    if local is not None and local.claims(held.address):
        return
    if held.is_tunnel and (held.host is None or held.host in store.hosts):
        return
    if held.handle is None:
        return  # said already
    if held.orchestrator is None and not held.is_tunnel:
        yield finding("address-unproven", held.address, f"is held by {_holder(held)}, and no endpoint carries it")
        return
    seen = ""
    if local is not None and held.host == local.host:
        seen = f"; {local.sign_of(held, named) or 'nor does the kernel have it'}"
    yield finding("address-without-endpoint", held.address, f"is held by {_holder(held)}, no endpoint carries it{seen}")


def _is_managed(address: IPAddress, store: StoreView) -> bool:
    """Whether anybody could be given the address: endpoints may carry addresses that are not ours to manage."""
    pools = (found.record.cidr for found in store.pools if found.record.ipam)
    return any(contains(cidr, address) for cidr in itertools.chain(pools, (b.record.cidr for b in store.blocks)))


def _holder(held: Held) -> str:
    return f"{held.handle or 'nobody known'}" + (f" on {held.host}" if held.host else "")


def _short(key: WorkloadEndpointKey) -> str:
    return f"{key.host}/{key.orchestrator}/{key.workload}/{key.endpoint}"


# --- one host --------------------------------------------------------------------------------------


def _kernel(store: StoreView, local: LocalView) -> Iterator[Finding]:
    own = [found for found in store.endpoints if endpoint_key(found).host == local.host]
    carried: set[IPAddress] = set()
    for found in own:
        record, name = found.record, _short(endpoint_key(found))
        carried.update(addresses_of(record))
        if record.state != "active":
            continue
        if record.name not in local.interfaces:
            yield finding("endpoint-without-interface", name, f"{record.name} does not exist on {local.host}")
            continue
        for address in addresses_of(record):
            if local.host_routes.get(address) != record.name:
                yield finding("endpoint-without-route", name, f"no route to {address} leads into {record.name}")
    wanted = {found.record.name for found in own}
    for interface in sorted(local.interfaces - wanted):
        if local.is_workload(interface):
            yield finding("interface-without-endpoint", interface, f"exists on {local.host}, no endpoint names it")
    for address, interface in local.host_routes.items():
        if local.is_workload(interface) and address not in carried:
            yield finding("route-without-endpoint", address, f"leads into {interface}, no endpoint carries it")


def _lists(store: StoreView, local: LocalView) -> Iterator[Finding]:
    held = {each.address for each in store.held()}
    for name, addresses in local.lists.items():
        for address, whose in addresses.items():
            if address not in held and _is_managed(address, store):
                yield finding("listed-address-free", address, f"{name} has it in use for {whose}")

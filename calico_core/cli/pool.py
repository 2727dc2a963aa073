"""``calicoctl pool``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
import msgspec
from netaddr import IPNetwork

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.failure import Missing, Refused
from calico_core.cli.output import answer, note
from calico_core.errors import Conflict, InvalidRequest
from calico_core.interfaces.datastore import Compare, Delete, NoneNewer, Operation, Precondition, Put, Versioned
from calico_core.ipam.store_view import held_in
from calico_core.model import codec
from calico_core.model.addresses import parse_network
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import AFFINITIES, BLOCKS, POOLS, AffinityKey, BlockKey, PoolKey
from calico_core.model.pools import BLOCK_PREFIX, BLOCK_SIZES, Pool, Use

if TYPE_CHECKING:
    from calico_core.model.blocks import Block

_ATTEMPTS = 3
_LISTED = 20
_USES: dict[str, Use] = {"workload": "Workload", "tunnel": "Tunnel"}


@click.group()
def pool() -> None:
    """Pools of addresses that workloads get theirs from."""


@pool.command()
@click.argument("cidrs", nargs=-1, required=True, metavar="CIDR...")
@click.option("--nat-outgoing", is_flag=True, help="Traffic that leaves all pools gets the host's address.")
@click.option("--ipip", is_flag=True, help="Carry the pool's traffic between hosts in IPIP.")
@click.option("--vxlan/--no-vxlan", default=None, help="Carry the pool's traffic between hosts in VXLAN.")
@click.option("--block-size", type=int, metavar="LENGTH", help="Prefix length of its blocks.")
@click.option("--disabled/--enabled", default=None, help="No new addresses from it.")
@click.option("--uses", callback=lambda _, __, text: _uses(text), metavar="USES", help="What its addresses are for.")
@pass_context
def add(context: CliContext, /, cidrs: tuple[str, ...], **options: Any) -> None:
    """Add pools, or set the options of an existing one. All or nothing.

    An existing pool gets --nat-outgoing and --ipip exactly as given here, and keeps everything else not given. USES is
    workload, tunnel, or both with a comma between them, which is what a new pool is for.

    Example: calicoctl pool add 10.65.0.0/16 --nat-outgoing
    """
    context.may_create = True
    networks = list(dict.fromkeys(parse_network(cidr, field="CIDR") for cidr in cidrs))
    for _attempt in range(_ATTEMPTS):
        # revisions first: a pool that comes between the two readings is newer, and refuses the transaction
        preconditions: list[Precondition] = [
            NoneNewer(prefix, context.records.store.list(prefix).revision)
            for prefix in sorted({_prefix(network.version) for network in networks})
        ]
        existing: dict[Any, Versioned[Pool]] = {found.record.cidr: found for found in _pools(context)}
        operations: list[Operation] = []
        for network in networks:
            wanted = _wanted(network, existing.get(network), options)
            _refuse_overlap(network, existing, networks)
            if network not in existing:
                _refuse_old_blocks(context, wanted)
            operations.append(Put(PoolKey(network).path, codec.encode(wanted)))
        if context.records.store.transact(preconditions, operations).committed:
            for network in networks:
                click.echo(f"pool {network} {'updated' if network in existing else 'created'}")
            return
    raise Conflict(PoolKey(networks[0]).path, None)


@pool.command()
@click.argument("cidrs", nargs=-1, required=True, metavar="CIDR...")
@pass_context
def remove(context: CliContext, cidrs: tuple[str, ...]) -> None:
    """Remove pools. Addresses in use stay with their workloads until released.

    The pool is disabled, hosts give up its blocks, then it goes. Interrupted half way it stays disabled: run it again.
    """
    networks = [parse_network(cidr, field="CIDR") for cidr in cidrs]
    found = [_existing(context, network) for network in networks]
    for network in networks:
        _warn_of_use(context, network)
    for each in found:
        pool_now = _switch(context, each.record.cidr, is_disabled=True)
        blocks = _give_up_blocks(context, pool_now.record.cidr)
        _delete(context, pool_now)
        click.echo(f"pool {pool_now.record.cidr} removed" + (f", {blocks} blocks given up" if blocks else ""))


@pool.command()
@click.argument("cidrs", nargs=-1, required=True, metavar="CIDR...")
@pass_context
def disable(context: CliContext, cidrs: tuple[str, ...]) -> None:
    """No new addresses from these pools, from now on. Those in use stay."""
    _switch_all(context, cidrs, is_disabled=True)


@pool.command()
@click.argument("cidrs", nargs=-1, required=True, metavar="CIDR...")
@pass_context
def enable(context: CliContext, cidrs: tuple[str, ...]) -> None:
    """New addresses from these pools again."""
    _switch_all(context, cidrs, is_disabled=False)


@pool.command()
@click.option("--ipv4", "family", flag_value=4, type=int, help="IPv4 only.")
@click.option("--ipv6", "family", flag_value=6, type=int, help="IPv6 only.")
@pass_context
def show(context: CliContext, family: int | None) -> None:
    """Show the pools."""
    rows: list[dict[str, Any]] = [
        {
            "cidr": str(found.record.cidr),
            "ip_version": found.record.cidr.version,
            "nat_outgoing": found.record.masquerade,
            "ipip": bool(found.record.ipip or found.record.ipip_mode),
            "vxlan": bool(found.record.vxlan_mode),
            "ipam": found.record.ipam,
            "disabled": found.record.disabled,
            "block_size": found.record.block_prefix,
            "uses": [use.lower() for use in found.record.uses],
        }
        for found in sorted(_pools(context), key=lambda found: found.record.cidr)
        if family in {None, found.record.cidr.version}
    ]
    for row in rows:
        row["options"] = [name for name in ("nat_outgoing", "ipip", "vxlan", "disabled") if row[name]]
        row["options"] += [f"no_{use}" for use in _USES if use not in row["uses"]]
    answer(context, rows, {"CIDR": "cidr", "Options": "options", "Block size": "block_size"})


def _uses(text: str | None) -> tuple[Use, ...]:
    """Empty: not given."""
    found: dict[Use, None] = {}
    for word in () if text is None else text.split(","):
        cleaned = word.strip().lower()
        if cleaned not in _USES:
            raise InvalidRequest("--uses", f"{cleaned!r} is not workload or tunnel")
        found[_USES[cleaned]] = None
    return tuple(found)


def _pools(context: CliContext) -> list[Versioned[Pool]]:
    return [found for version in (4, 6) for found in context.records.list(_prefix(version))]


def _prefix(version: int) -> str:
    return f"{POOLS}v{version}/pool/"


def _overlaps(left: Any, right: Any) -> bool:
    return left != right and (left in right or right in left)


def _wanted(network: Any, existing: Versioned[Pool] | None, options: dict[str, Any]) -> Pool:
    limit = options["block_size"] or BLOCK_PREFIX[network.version]
    low, high = BLOCK_SIZES[network.version]
    if not low <= limit <= high:
        raise InvalidRequest("--block-size", f"{limit} is not between {low} and {high}, those of IPv{network.version}")
    if network.prefixlen > limit:
        raise InvalidRequest("CIDR", f"{network} holds no block: give /{limit} or shorter, or a longer --block-size")
    if (what := _no_hosts_in(network)) is not None:
        raise InvalidRequest("CIDR", f"{network} holds {what} addresses: no workload can have one")
    if options["ipip"] and network.version == 6:
        raise InvalidRequest("--ipip", f"carries IPv4 only, {network} is IPv6")
    if existing is not None and options["block_size"] not in {None, existing.record.block_prefix}:
        raise Refused(
            f"the block size of {network} is /{existing.record.block_prefix} and cannot change",
            "add a new pool, disable this one and move the workloads",
        )
    try:
        base = existing.record if existing is not None else Pool(cidr=network, block_size=options["block_size"])
        return msgspec.structs.replace(
            base,
            masquerade=options["nat_outgoing"],
            ipip="tunl0" if options["ipip"] else None,
            vxlan_mode=base.vxlan_mode if options["vxlan"] is None else "always" if options["vxlan"] else "",
            disabled=base.disabled if options["disabled"] is None else options["disabled"],
            allowed_uses=options["uses"] or base.allowed_uses,
        )
    except ValueError as error:  # what the record itself forbids: block sizes, two encapsulations
        raise InvalidRequest("pool", str(error)) from error


def _no_hosts_in(network: IPNetwork) -> str | None:
    """What addresses those are, of a network no host can be in."""
    kinds = {
        "loopback": ("127.0.0.0/8", "::1/128"),
        "multicast": ("224.0.0.0/4", "ff00::/8"),
        "link-local": ("169.254.0.0/16", "fe80::/10"),
        "unspecified": ("0.0.0.0/8", "::/128"),
    }
    return next(
        (kind for kind, nets in kinds.items() if any(network in net or net in network for net in map(IPNetwork, nets))),
        None,
    )


def _refuse_overlap(network: IPNetwork, existing: Mapping[IPNetwork, object], given: list[IPNetwork]) -> None:
    clash = next((cidr for cidr in (*existing, *given) if _overlaps(cidr, network)), None)
    if clash is None:
        return
    if clash not in existing:
        raise Refused(f"pool {network} overlaps pool {clash}")
    if network in clash:
        raise Refused(
            f"pool {network} lies inside pool {clash}: a pool cannot shrink, its blocks may be in use anywhere",
            f"add a pool elsewhere, 'calicoctl pool disable {clash}', attach the workloads anew, remove {clash}",
        )
    raise Refused(
        f"pool {network} lies around pool {clash}: a pool cannot grow",
        f"add a further pool beside {clash}; hosts take from both",
    )


def _refuse_old_blocks(context: CliContext, wanted: Pool) -> None:
    """Blocks of a pool that was removed stay while they are in use. They are cut as they were, and must fit."""
    if not wanted.ipam:
        return
    for found in _blocks_in(context, wanted.cidr):
        block = found.record
        if block.cidr.prefixlen != wanted.block_prefix or wanted.cidr.prefixlen > block.cidr.prefixlen:
            used = sum(1 for _ in held_in(block))
            raise Refused(
                f"the block {block.cidr} of an earlier pool has {used} addresses in use, "
                f"and blocks of {wanted.cidr} would be /{wanted.block_prefix}",
                f"give --block-size {block.cidr.prefixlen}, or detach what 'calicoctl ipam show --blocks' shows there",
            )


def _existing(context: CliContext, network: IPNetwork) -> Versioned[Pool]:
    found: Versioned[Pool] | None = context.records.get(PoolKey(network))
    if found is None:
        raise Missing("pool", str(network), "calicoctl pool show lists them")
    return found


def _switch_all(context: CliContext, cidrs: tuple[str, ...], *, is_disabled: bool) -> None:
    networks = [parse_network(cidr, field="CIDR") for cidr in cidrs]
    before = [_existing(context, network) for network in networks]
    for found in before:
        _switch(context, found.record.cidr, is_disabled=is_disabled)
        word = "disabled" if is_disabled else "enabled"
        is_same = found.record.disabled == is_disabled
        click.echo(f"pool {found.record.cidr} {'unchanged: it is ' if is_same else ''}{word}")


def _switch(context: CliContext, network: IPNetwork, *, is_disabled: bool) -> Versioned[Pool]:
    """The pool as it is then. Claims compare its revision, so none is in flight any more."""
    for _attempt in range(_ATTEMPTS):
        found = _existing(context, network)
        if found.record.disabled == is_disabled:
            return found
        wanted = msgspec.structs.replace(found.record, disabled=is_disabled)
        try:
            return Versioned(found.key, wanted, context.records.swap(found, wanted))
        except Conflict:
            continue
    raise Conflict(PoolKey(network).path, None)


def _give_up_blocks(context: CliContext, network: IPNetwork) -> int:
    """Empty blocks are deleted, the others lose their owner and go with their last address."""
    from calico_core.node.composition import open_ipam

    owned: dict[IPNetwork, set[str]] = {}
    for found in _blocks_in(context, network):
        if found.record.owner is not None:
            owned.setdefault(found.record.cidr, set()).add(found.record.owner)
    for entry in context.records.store.list(AFFINITIES).entries:
        key = parse_key(entry.key)
        if isinstance(key, AffinityKey) and _is_inside(key.cidr, network):
            owned.setdefault(key.cidr, set()).add(key.host)
    ipam = open_ipam(context.records, context.host)
    try:
        for cidr, hosts in sorted(owned.items()):
            for host in sorted(hosts):
                ipam.release_affinity(cidr, host)
    finally:
        ipam.close()
    return len(owned)


def _delete(context: CliContext, found: Versioned[Pool]) -> None:
    result = context.records.store.transact(
        [Compare(found.key.path, found.mod_revision)], [Delete(found.key.path)], [found.key.path]
    )
    if not result.committed and result.current[0] is not None:
        raise Conflict(found.key.path, result.current[0])


def _warn_of_use(context: CliContext, network: IPNetwork) -> None:
    used = [each for found in _blocks_in(context, network) for each in held_in(found.record)]
    if not used:
        return
    note(f"warning: {len(used)} addresses of {network} are in use and stay until released:")
    for each in used[:_LISTED]:
        note(f"  {each.address}  {each.handle or ''}" + (f"  on {each.host}" if each.host else ""))
    if len(used) > _LISTED:
        note(f"  and {len(used) - _LISTED} more: calicoctl ipam show --blocks")


def _blocks_in(context: CliContext, network: IPNetwork) -> list[Versioned[Block]]:
    """Those that share an address with ``network``."""
    return [
        found
        for found in context.records.list(BLOCKS)
        if isinstance(found.key, BlockKey)
        and not found.record.deleted
        and (_is_inside(found.record.cidr, network) or _is_inside(network, found.record.cidr))
    ]


def _is_inside(inner: IPNetwork, outer: IPNetwork) -> bool:
    return bool(inner.version == outer.version and outer.first <= inner.first and inner.last <= outer.last)

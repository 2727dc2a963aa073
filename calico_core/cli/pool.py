"""``calicoctl pool``."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.failure import Missing, Refused
from calico_core.cli.output import answer, note
from calico_core.errors import Conflict, InvalidRequest
from calico_core.interfaces.datastore import Compare, Delete, NoneNewer, Operation, Precondition, Put, Versioned
from calico_core.model import codec
from calico_core.model.addresses import contains, first_address, parse_network
from calico_core.model.keys import BLOCKS, POOLS, BlockKey, PoolKey
from calico_core.model.pools import BLOCK_PREFIX, Pool

_ATTEMPTS = 3


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
@pass_context
def add(context: CliContext, /, cidrs: tuple[str, ...], **options: Any) -> None:
    """Add pools, or set the options of an existing one. All or nothing.

    An existing pool gets --nat-outgoing and --ipip exactly as given here, and keeps everything else not given.

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
            clash = next((cidr for cidr in (*existing, *networks) if _overlaps(cidr, network)), None)
            if clash is not None:
                raise Refused(f"pool {network} overlaps pool {clash}")
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
    """Remove pools. Addresses in use stay with their workloads until released."""
    networks = [parse_network(cidr, field="CIDR") for cidr in cidrs]
    existing = {found.record.cidr: found for found in _pools(context)}
    for network in networks:
        if network not in existing:
            raise Missing("pool", str(network), "calicoctl pool show lists them")
    in_use = _addresses_in_use(context)
    for network in networks:
        used = [address for address in in_use if contains(network, address)]
        if used:
            note(f"warning: {len(used)} addresses of {network} are in use and stay: {', '.join(map(str, used[:5]))} …")
        found = existing[network]
        result = context.records.store.transact(
            [Compare(found.key.path, found.mod_revision)], [Delete(found.key.path)], [found.key.path]
        )
        if not result.committed:
            raise Conflict(found.key.path, result.current[0])
        click.echo(f"pool {network} removed")


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
        }
        for found in sorted(_pools(context), key=lambda found: found.record.cidr)
        if family in {None, found.record.cidr.version}
    ]
    for row in rows:
        row["options"] = [name for name in ("nat_outgoing", "ipip", "vxlan", "disabled") if row[name]]
    answer(context, rows, {"CIDR": "cidr", "Options": "options", "Block size": "block_size"})


def _pools(context: CliContext) -> list[Versioned[Pool]]:
    return [found for version in (4, 6) for found in context.records.list(_prefix(version))]


def _prefix(version: int) -> str:
    return f"{POOLS}v{version}/pool/"


def _overlaps(left: Any, right: Any) -> bool:
    return left != right and (left in right or right in left)


def _wanted(network: Any, existing: Versioned[Pool] | None, options: dict[str, Any]) -> Pool:
    limit = options["block_size"] or BLOCK_PREFIX[network.version]
    if network.prefixlen > limit:
        raise InvalidRequest("CIDR", f"{network} holds no block: give /{limit} or shorter, or a longer --block-size")
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
        )
    except ValueError as error:  # what the record itself forbids: block sizes, two encapsulations
        raise InvalidRequest("pool", str(error)) from error


def _addresses_in_use(context: CliContext) -> list[Any]:
    from netaddr import IPAddress

    return [
        IPAddress(int(first_address(found.record.cidr)) + ordinal, found.record.cidr.version)
        for found in context.records.list(BLOCKS)
        if isinstance(found.key, BlockKey)
        for ordinal, index in enumerate(found.record.allocations)
        if index is not None
    ]

"""``calicoctl ipam``."""

from __future__ import annotations

from typing import Any

import click

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.failure import Refused
from calico_core.cli.output import answer, answer_one
from calico_core.model.addresses import contains, parse_address
from calico_core.model.keys import BLOCKS, HOSTS, POOLS, BlockKey, PoolKey, WorkloadEndpointKey

_BAR = 20


@click.group()
def ipam() -> None:
    """Addresses: who holds which."""


@ipam.command()
@click.argument("address", required=False)
@click.option("--blocks", is_flag=True, help="A row a block instead of a pool.")
@pass_context
def show(context: CliContext, address: str | None, blocks: bool) -> None:
    """Show the pools and how full they are, or who holds ADDRESS."""
    if address is not None:
        _show_address(context, address)
        return
    found = [record.record for record in context.records.list(BLOCKS) if isinstance(record.key, BlockKey)]
    if blocks:
        rows = [
            _usage(str(block.cidr), block.cidr.size, len(block.allocations) - len(block.unallocated or ()))
            | {"host": block.owner}
            for block in sorted(found, key=lambda block: block.cidr)
        ]
        answer(context, rows, {"Block": "cidr", "Host": "host", "Used": "used", "Free": "free", "": "bar"})
        return
    rows = []
    for pool in sorted(record.record.cidr for record in context.records.list(POOLS) if isinstance(record.key, PoolKey)):
        inside = [block for block in found if block.cidr in pool]
        used = sum(len(block.allocations) - len(block.unallocated or ()) for block in inside)
        rows.append(_usage(str(pool), pool.size, used) | {"blocks": len(inside)})
    answer(context, rows, {"Pool": "cidr", "Blocks": "blocks", "Used": "used", "Free": "free", "": "bar"})


@ipam.command()
@click.argument("address")
@click.option("--force", is_flag=True, help="Also when a live endpoint has it.")
@pass_context
def release(context: CliContext, address: str, force: bool) -> None:
    """Release ADDRESS, whoever held it."""
    wanted = parse_address(address, field="ADDRESS")
    owner = _endpoint_of(context, str(wanted))
    if owner and not force:
        raise Refused(f"address {wanted} belongs to the live endpoint {owner}", "detach the workload, or give --force")
    from calico_core.node.composition import open_ipam

    free = open_ipam(context.records, context.host).release([wanted])
    click.echo(f"Address {wanted} was not assigned." if free else f"Address {wanted} released.")


def _show_address(context: CliContext, address: str) -> None:
    from calico_core.node.composition import open_ipam

    wanted = parse_address(address, field="ADDRESS")
    found = open_ipam(context.records, context.host).allocation(wanted)
    if found is None:
        answer_one(context, {"address": str(wanted), "is_assigned": False}, f"IP {wanted} is not assigned.")
        return
    block = next(
        record.record
        for record in context.records.list(BLOCKS)
        if isinstance(record.key, BlockKey) and contains(record.record.cidr, wanted)
    )
    value: dict[str, Any] = {
        "address": str(wanted),
        "is_assigned": True,
        "handle": found.handle,
        "attributes": found.attributes,
        "block": str(block.cidr),
        "host": block.owner,
        "endpoint": _endpoint_of(context, str(wanted)),
    }
    text = "\n".join(f"{name:12} {entry}" for name, entry in value.items() if name != "is_assigned")
    answer_one(context, value, text)


def _endpoint_of(context: CliContext, address: str) -> str | None:
    for found in context.records.list(HOSTS):
        if isinstance(found.key, WorkloadEndpointKey) and address in {str(net.ip) for net in found.record.nets}:
            return f"{found.key.host}/{found.key.endpoint}"
    return None


def _usage(cidr: str, size: int, used: int) -> dict[str, Any]:
    filled = round(_BAR * used / size)
    share = f"{100 * used / size:.1f} %" if size < 1 << 32 else f"{used} of {size:.0e}"
    bar = f"[{'#' * filled}{'.' * (_BAR - filled)}] {share}"
    return {"cidr": cidr, "size": size, "used": used, "free": size - used, "bar": bar}

"""``calicoctl ipam``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.failure import Refused
from calico_core.cli.ipam_check import check, heal
from calico_core.cli.ipam_views import read_host, read_store
from calico_core.cli.output import answer, answer_one, note
from calico_core.cli.running import ask_node
from calico_core.errors import Conflict, InvalidRequest
from calico_core.model.addresses import contains, parse_address
from calico_core.model.blocks import IpamConfig
from calico_core.model.keys import BLOCKS, HOSTS, POOLS, BlockKey, IpamConfigKey, PoolKey, WorkloadEndpointKey

if TYPE_CHECKING:
    from netaddr import IPAddress

    from calico_core.ipam.leaks import Leak

_BAR = 20
_ATTEMPTS = 3
_SWITCH = click.Choice(["on", "off"])


@click.group()
def ipam() -> None:
    """Addresses: who holds which."""


ipam.add_command(check)
ipam.add_command(heal)


# --- showing ---------------------------------------------------------------------------------------


@ipam.command()
@click.argument("address", required=False)
@click.option("--blocks", "what", flag_value="blocks", help="A row a block instead of a pool.")
@click.option("--borrowed", "what", flag_value="borrowed", help="Addresses used on another host than the block's.")
@click.option("--config", "what", flag_value="config", help="The rules of assignment.")
@pass_context
def show(context: CliContext, address: str | None, what: str | None) -> None:
    """Show the pools and how full they are, or who holds ADDRESS."""
    if address is not None:
        _show_address(context, address)
    elif what == "config":
        _show_config(context)
    elif what == "borrowed":
        _show_borrowed(context)
    else:
        _show_usage(context, is_by_block=what == "blocks")


def _show_usage(context: CliContext, *, is_by_block: bool) -> None:
    from calico_core.ipam.store_view import held_in

    found = [record.record for record in context.records.list(BLOCKS) if isinstance(record.key, BlockKey)]
    used = {block.cidr: sum(1 for _ in held_in(block)) for block in found if not block.deleted}
    if is_by_block:
        owners = {block.cidr: block.owner for block in found}
        rows = [_usage(str(cidr), cidr.size, number) | {"host": owners[cidr]} for cidr, number in sorted(used.items())]
        answer(context, rows, {"Block": "cidr", "Host": "host", "Used": "used", "Free": "free", "": "bar"})
        return
    rows = []
    for pool in sorted(record.record.cidr for record in context.records.list(POOLS) if isinstance(record.key, PoolKey)):
        inside = [number for cidr, number in used.items() if cidr in pool]
        rows.append(_usage(str(pool), pool.size, sum(inside)) | {"blocks": len(inside)})
    answer(context, rows, {"Pool": "cidr", "Blocks": "blocks", "Used": "used", "Free": "free", "": "bar"})


def _show_borrowed(context: CliContext) -> None:
    rows = [
        {
            "address": str(each.address),
            "host": each.host,
            "block": str(each.block.cidr),
            "owner": each.block.owner,
            "handle": each.handle,
        }
        for each in sorted(read_store(context).held(), key=lambda each: each.address)
        if each.host is not None and each.block.owner not in {None, each.host}
    ]
    answer(context, rows, {"Address": "address", "On": "host", "Block": "block", "Of": "owner", "Handle": "handle"})


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
    shown = {**value, "attributes": ", ".join(f"{name}={entry}" for name, entry in found.attributes.items())}
    text = "\n".join(f"{name:12} {entry or '-'}" for name, entry in shown.items() if name != "is_assigned")
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


# --- releasing -------------------------------------------------------------------------------------


@ipam.command()
@click.argument("address", required=False)
@click.option("--handle", help="Only if this handle holds it.")
@click.option("--force", is_flag=True, help="Also when a live endpoint has it.")
@click.option("--leaked", is_flag=True, help="All that no workload uses any more: shows the plan.")
@click.option("--yes", is_flag=True, help="With --leaked: carry the plan out.")
@click.option("--grace", type=click.FloatRange(min=0), default=900.0, metavar="SECONDS", help="Keep what is younger.")
@click.option("--settle", type=click.FloatRange(min=0), default=5.0, metavar="SECONDS", help="Between the two looks.")
@pass_context
def release(
    context: CliContext,
    address: str | None,
    handle: str | None,
    force: bool,
    leaked: bool,
    yes: bool,
    grace: float,
    settle: float,
) -> None:
    """Release ADDRESS, whoever held it; or all leaked addresses.

    An address is leaked when no endpoint carries it and the host that assigned it has it neither in its kernel nor in
    an integration's list. Of other hosts that can only be said once they are gone: run this on each, as root.
    """
    if leaked == (address is not None):
        raise click.UsageError("give an ADDRESS, or --leaked")
    if leaked:
        _release_leaked(context, is_confirmed=yes, grace_s=grace, settle_s=settle)
        return
    wanted = parse_address(address or "", field="ADDRESS")
    _release_one(context, wanted, handle=handle, is_forced=force)


def _release_one(context: CliContext, wanted: IPAddress, *, handle: str | None, is_forced: bool) -> None:
    owner = _endpoint_of(context, str(wanted))
    if owner and not is_forced:
        raise Refused(f"address {wanted} belongs to the live endpoint {owner}", "detach the workload, or give --force")
    from calico_core.node.composition import open_ipam

    free = open_ipam(context.records, context.host).release([wanted], handle=handle)
    click.echo(f"Address {wanted} was not assigned." if free else f"Address {wanted} released.")


def _release_leaked(context: CliContext, *, is_confirmed: bool, grace_s: float, settle_s: float) -> None:
    plan = _leaks(context, grace_s)
    answer(
        context,
        [_leak_row(leak) for leak in plan],
        {"Addresses": "addresses", "Handle": "handle", "Host": "host", "Age": "age", "Why": "why", "Kept": "kept"},
    )
    wanted = {leak.handle for leak in plan if not leak.kept}
    if not wanted or not is_confirmed:
        note(f"{len(wanted)} handles can be released" + (": give --yes to do it" if wanted else " from here"))
        return
    time.sleep(settle_s)
    released, kept = _release_seen_twice(context, wanted, grace_s)
    note(f"{released} addresses released" + (f", {kept} handles left alone: they are in use again" if kept else ""))


def _release_seen_twice(context: CliContext, wanted: set[str], grace_s: float) -> tuple[int, int]:
    from calico_core.ipam.leaks import find_leaks
    from calico_core.node.collection import LeakedHandle
    from calico_core.node.collector import release_leak
    from calico_core.node.composition import open_ipam

    store = read_store(context)
    again = find_leaks(store, read_host(context, store), now=time.time(), grace_s=grace_s)
    driver = open_ipam(context.records, context.host)
    released = 0
    done: set[str] = set()
    try:
        for leak in again:
            handle = LeakedHandle(leak.handle, leak.held)
            host = leak.host or context.host
            if leak.kept or leak.handle not in wanted:
                continue
            if release_leak(context.records, driver, handle, host=host, view=store):
                done.add(leak.handle)
                released += len(leak.held)
    finally:
        driver.close()
    return released, len(wanted - done)


def _leaks(context: CliContext, grace_s: float) -> tuple[Leak, ...]:
    from calico_core.ipam.leaks import find_leaks

    store = read_store(context)
    return find_leaks(store, read_host(context, store), now=time.time(), grace_s=grace_s)


def _leak_row(leak: Leak) -> dict[str, Any]:
    return {
        "addresses": [str(address) for address in leak.addresses],
        "handle": leak.handle,
        "host": leak.host,
        "age_s": None if leak.age_s is None else round(leak.age_s),
        "age": "unknown" if leak.age_s is None else _span(leak.age_s),
        "why": leak.why,
        "kept": leak.kept,
    }


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


@ipam.command()
@pass_context
def unfreeze(context: CliContext) -> None:  # noqa: ARG001 - every command takes it
    """Tell this host's node that a sudden loss of endpoint records was meant: it may delete again."""
    found = ask_node("unfreeze")
    assert found is not None
    reason = found["frozen_because"]
    click.echo(f"No longer frozen: {reason}." if reason else "Nothing was frozen.")


# --- rules -----------------------------------------------------------------------------------------


@ipam.command()
@click.option("--strict-affinity", type=_SWITCH, help="A host takes addresses from its own blocks alone.")
@click.option("--auto-allocate", type=_SWITCH, help="Hosts claim blocks when they need one.")
@click.option("--max-blocks-per-host", type=click.IntRange(min=0), metavar="N", help="Of each family; 0: the default.")
@click.option("--cooldown", type=click.IntRange(min=0), metavar="SECONDS", help="Before an address is given again.")
@pass_context
def configure(
    context: CliContext,
    strict_affinity: str | None,
    auto_allocate: str | None,
    max_blocks_per_host: int | None,
    cooldown: int | None,
) -> None:
    """Change the rules of assignment; what is not given stays. Without options they are shown.

    Strict affinity off together with automatic allocation off is refused: no host would ever get an address.
    """
    given: dict[str, Any] = {
        "strict_affinity": None if strict_affinity is None else strict_affinity == "on",
        "auto_allocate_blocks": None if auto_allocate is None else auto_allocate == "on",
        "max_blocks_per_host": max_blocks_per_host,
        "cooldown_s": cooldown,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        _show_config(context)
        return
    for _attempt in range(_ATTEMPTS):
        found = context.records.get(IpamConfigKey())
        before: IpamConfig = found.record if found is not None else IpamConfig()
        after = _changed(before, changes)
        if after == before:
            click.echo("unchanged")
            return
        revision = found.mod_revision if found is not None else 0
        try:
            context.records.store.compare_and_swap(IpamConfigKey().path, _encoded(after), revision)
        except Conflict:
            continue
        _tell(context, before, after)
        return
    raise Conflict(IpamConfigKey().path, None)


def _changed(before: IpamConfig, changes: dict[str, Any]) -> IpamConfig:
    try:
        return msgspec.structs.replace(before, **changes)
    except ValueError as error:
        text = str(error)
        if text.startswith("auto_allocate_blocks"):
            raise Refused(
                "automatic allocation off needs strict affinity on",
                "give --strict-affinity on --auto-allocate off together, or leave both",
            ) from error
        field, _, reason = text.partition(": ")
        raise InvalidRequest({"ipCooldownSeconds": "--cooldown"}.get(field, field), reason) from error


def _encoded(config: IpamConfig) -> bytes:
    from calico_core.model import codec

    return codec.encode(config)


def _tell(context: CliContext, before: IpamConfig, after: IpamConfig) -> None:
    old, new = _config_row(before), _config_row(after)
    for name, value in new.items():
        if value != old[name]:
            click.echo(f"{name}: {old[name]} -> {value}")
    if after.strict_affinity and not before.strict_affinity:
        borrowed = sum(
            1 for each in read_store(context).held() if each.host and each.block.owner not in {None, each.host}
        )
        if borrowed:
            note(f"{borrowed} borrowed addresses stay with their workloads: calicoctl ipam show --borrowed")


def _config_row(config: IpamConfig) -> dict[str, Any]:
    return {
        "strict_affinity": config.strict_affinity,
        "auto_allocate": config.auto_allocate_blocks,
        "max_blocks_per_host": config.max_blocks_per_host,
        "cooldown_s": config.cooldown_s,
    }


def _show_config(context: CliContext) -> None:
    found = context.records.get(IpamConfigKey())
    row = _config_row(found.record if found is not None else IpamConfig())
    answer_one(context, row, "\n".join(f"{name:20} {value}" for name, value in row.items()))

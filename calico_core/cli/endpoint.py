"""``calicoctl endpoint``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import msgspec

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.endpoint_words import parse_ports, port_word
from calico_core.cli.failure import Missing, Refused
from calico_core.cli.named import NamedGroup, name_of
from calico_core.cli.output import answer
from calico_core.errors import Conflict
from calico_core.interfaces.datastore import Versioned
from calico_core.model.addresses import parse_network
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import FELIX_STATUS, HOSTS, PROFILES, WorkloadEndpointKey, WorkloadStatusKey

_ATTEMPTS = 3
_MIN_PREFIX = 4


@click.group(cls=NamedGroup, subcommand_metavar="show | ID profile|ports|source-prefix COMMAND")
def endpoint() -> None:
    """Endpoints: the interfaces of workloads. ID may be shortened to at least 4 characters if it is unique."""


assert isinstance(endpoint, NamedGroup)


@endpoint.command()
@click.option("--host", "on_host", metavar="HOST", help="Only of this host.")
@click.option("--orchestrator", metavar="NAME", help="Only of this orchestrator.")
@click.option("--workload", metavar="ID", help="Only of this workload.")
@click.option("--endpoint", "endpoint_id", metavar="ID", help="Only this one.")
@click.option("--detailed", is_flag=True, help="A row an endpoint.")
@pass_context
def show(
    context: CliContext,
    on_host: str | None,
    orchestrator: str | None,
    workload: str | None,
    endpoint_id: str | None,
    detailed: bool,
) -> None:
    """Show endpoints: a row a host and orchestrator, or with --detailed each."""
    rows = [
        row
        for row in _rows(context)
        if on_host in {None, row["host"]}
        and orchestrator in {None, row["orchestrator"]}
        and workload in {None, row["workload"]}
        and (endpoint_id is None or row["endpoint"].startswith(endpoint_id))
    ]
    if detailed or context.output != "table":
        columns = {
            "Hostname": "host",
            "Orchestrator ID": "orchestrator",
            "Workload ID": "workload",
            "Endpoint ID": "endpoint",
            "Addresses": "addresses",
            "MAC": "mac",
            "Profiles": "profiles",
            "Ports": "ports",
            "State": "state",
            "Interface": "interface",
            "Status": "status",
        }
        answer(context, rows, columns)
        return
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["host"], row["orchestrator"]), []).append(row)
    summary = [
        {
            "host": host,
            "orchestrator": name,
            "workloads": len({row["workload"] for row in members}),
            "endpoints": len(members),
        }
        for (host, name), members in sorted(groups.items())
    ]
    answer(
        context,
        summary,
        {
            "Hostname": "host",
            "Orchestrator ID": "orchestrator",
            "Number of Workloads": "workloads",
            "Number of Endpoints": "endpoints",
        },
    )


@endpoint.add_form
@click.group()
def profile() -> None:
    """Profiles of an endpoint, in order."""


@profile.command("show")
@click.pass_context
def profile_show(ctx: click.Context) -> None:
    """Show the profiles of the endpoint."""
    found = _find(ctx.obj, name_of(ctx))
    answer(ctx.obj, [{"profile": name} for name in found.record.profile_ids], {"Name": "profile"})


@profile.command("append")
@click.argument("profiles", nargs=-1, required=True)
@click.pass_context
def profile_append(ctx: click.Context, profiles: tuple[str, ...]) -> None:
    """Add profiles behind those it has."""
    _check(ctx.obj, profiles)

    def change(before: tuple[str, ...]) -> tuple[str, ...]:
        return (*before, *(name for name in profiles if name not in before))

    is_changed = _change_profiles(ctx, change)
    click.echo(
        f"Profile(s) {', '.join(profiles)} {'appended.' if is_changed else 'already on the endpoint: unchanged.'}"
    )


@profile.command("remove")
@click.argument("profiles", nargs=-1, required=True)
@click.pass_context
def profile_remove(ctx: click.Context, profiles: tuple[str, ...]) -> None:
    """Take profiles off it."""
    is_changed = _change_profiles(ctx, lambda before: tuple(name for name in before if name not in profiles))
    click.echo(f"Profile(s) {', '.join(profiles)} {'removed.' if is_changed else 'not on the endpoint: unchanged.'}")


@profile.command("set")
@click.argument("profiles", nargs=-1)
@click.pass_context
def profile_set(ctx: click.Context, profiles: tuple[str, ...]) -> None:
    """Give it exactly these profiles."""
    _check(ctx.obj, profiles)
    is_changed = _change_profiles(ctx, lambda _: profiles)
    click.echo(f"Profile(s) {', '.join(profiles) or 'none'} {'set.' if is_changed else 'already set: unchanged.'}")


@endpoint.add_form
@click.group()
def ports() -> None:
    """Named ports of an endpoint: what rules that name a port mean there."""


@ports.command("show")
@click.pass_context
def ports_show(ctx: click.Context) -> None:
    """Show the named ports of the endpoint."""
    found = _find(ctx.obj, name_of(ctx))
    rows = [{"name": port.name, "protocol": port.protocol, "port": port.port} for port in found.record.ports]
    answer(ctx.obj, rows, {"Name": "name", "Protocol": "protocol", "Port": "port"})


@ports.command("set")
@click.argument("named", metavar="[NAME:PROTOCOL:PORT]...", nargs=-1)
@click.pass_context
def ports_set(ctx: click.Context, named: tuple[str, ...]) -> None:
    """Give it exactly these ports, as in http:tcp:8080; a name may stand for several."""
    wanted = tuple(dict.fromkeys(parse_ports(named, field="NAME:PROTOCOL:PORT")))
    is_changed = _change(ctx, lambda before: msgspec.structs.replace(before, ports=wanted))
    words = ", ".join(map(port_word, wanted)) or "none"
    click.echo(f"Port(s) {words} {'set.' if is_changed else 'already set: unchanged.'}")


@endpoint.add_form
@click.group("source-prefix")
def source_prefix() -> None:
    """Prefixes that an endpoint may send from beside its own addresses, where WorkloadSourceSpoofing is Any."""


@source_prefix.command("show")
@click.pass_context
def source_prefix_show(ctx: click.Context) -> None:
    """Show the prefixes of the endpoint."""
    found = _find(ctx.obj, name_of(ctx))
    answer(ctx.obj, [{"prefix": str(each)} for each in found.record.allowed_source_prefixes], {"Prefix": "prefix"})


@source_prefix.command("set")
@click.argument("prefixes", nargs=-1, metavar="[CIDR]...")
@click.pass_context
def source_prefix_set(ctx: click.Context, prefixes: tuple[str, ...]) -> None:
    """Give it exactly these prefixes; none: its own addresses alone."""
    wanted = tuple(dict.fromkeys(parse_network(text, field="CIDR") for text in prefixes))
    is_changed = _change(ctx, lambda before: msgspec.structs.replace(before, allowed_source_prefixes=wanted))
    words = ", ".join(map(str, wanted)) or "none"
    click.echo(f"Source prefix(es) {words} {'set.' if is_changed else 'already set: unchanged.'}")


def _change_profiles(ctx: click.Context, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> bool:
    return _change(ctx, lambda before: msgspec.structs.replace(before, profile_ids=change(before.profile_ids)))


def _change(ctx: click.Context, change: Callable[[WorkloadEndpoint], WorkloadEndpoint]) -> bool:
    for _attempt in range(_ATTEMPTS):
        found = _find(ctx.obj, name_of(ctx))
        after = change(found.record)
        if after == found.record:
            return False
        try:
            ctx.obj.records.swap(found, after)
        except Conflict:
            continue
        return True
    raise Conflict(found.key.path, None)


def _check(context: CliContext, profiles: tuple[str, ...]) -> None:
    for name in profiles:
        if not context.records.store.list(f"{PROFILES}{name}/").entries:
            raise Missing("profile", name, f"create it with: calicoctl profile add {name}")


def _find(context: CliContext, endpoint_id: str) -> Versioned[WorkloadEndpoint]:
    """By id, unique prefix, address or workload id."""
    found = [
        record
        for record in _endpoints(context)
        if record.key.endpoint == endpoint_id  # type: ignore[attr-defined]
        or endpoint_id in {str(net.ip) for net in record.record.nets}
    ]
    if not found and len(endpoint_id) >= _MIN_PREFIX:
        found = [
            record
            for record in _endpoints(context)
            if record.key.endpoint.startswith(endpoint_id) or record.key.workload == endpoint_id  # type: ignore[attr-defined]
        ]
    if not found:
        raise Missing("endpoint", endpoint_id, "calicoctl endpoint show --detailed lists them")
    if len(found) > 1:
        names = ", ".join(f"{record.key.host}/{record.key.endpoint}" for record in found[:5])  # type: ignore[attr-defined]
        raise Refused(f"{endpoint_id!r} means {len(found)} endpoints: {names}")
    return found[0]


def _endpoints(context: CliContext) -> list[Versioned[WorkloadEndpoint]]:
    return [found for found in context.records.list(HOSTS) if isinstance(found.key, WorkloadEndpointKey)]


def _rows(context: CliContext) -> list[dict[str, Any]]:
    status = {
        (found.key.host, found.key.orchestrator, found.key.workload, found.key.endpoint): found.record
        for found in context.records.list(FELIX_STATUS)
        if isinstance(found.key, WorkloadStatusKey)
    }
    rows = []
    for found in _endpoints(context):
        key = found.key
        assert isinstance(key, WorkloadEndpointKey)
        record = found.record
        known = status.get((key.host, key.orchestrator, key.workload, key.endpoint))
        rows.append(
            {
                "host": key.host,
                "orchestrator": key.orchestrator,
                "workload": key.workload,
                "endpoint": key.endpoint,
                "interface": record.name,
                "addresses": [str(net.ip) for net in record.nets],
                "mac": str(record.mac) if record.mac else None,
                "profiles": list(record.profile_ids),
                "source_prefixes": [str(each) for each in record.allowed_source_prefixes],
                "labels": record.labels,
                "ports": [port_word(port) for port in record.ports],
                "state": record.state,
                "status": known.status if known else None,
            }
        )
    return sorted(rows, key=lambda row: (row["host"], row["orchestrator"], row["workload"], row["endpoint"]))

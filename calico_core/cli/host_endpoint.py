"""``calicoctl host-endpoint``: interfaces of hosts under policy."""

from __future__ import annotations

from typing import Any

import click

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.endpoint_words import parse_labels, parse_ports, port_word
from calico_core.cli.failure import Missing
from calico_core.cli.output import answer, note
from calico_core.cli.writing import put_record, remove_record
from calico_core.errors import InvalidRequest
from calico_core.model.addresses import parse_address
from calico_core.model.endpoints import ALL_INTERFACES, HostEndpoint
from calico_core.model.ids import check_host_interface, check_name
from calico_core.model.keys import HOSTS, HostEndpointKey


@click.group("host-endpoint")
def host_endpoint() -> None:
    """Host endpoints: interfaces of a host that policy holds for."""


@host_endpoint.command()
@click.option("--host", "on_host", metavar="HOST", help="Only of this host.")
@pass_context
def show(context: CliContext, on_host: str | None) -> None:
    """Show the host endpoints."""
    rows = [
        _row(found.key, found.record)
        for found in context.records.list(HOSTS)
        if isinstance(found.key, HostEndpointKey) and on_host in {None, found.key.host}
    ]
    for path, reason in sorted(getattr(context.records, "bad_records", {}).items()):
        if "/workload/" not in path and "/endpoint/" in path:
            note(f"not in force, because it does not decode: {reason}")
    columns = {
        "Hostname": "host",
        "Name": "name",
        "Interface": "interface",
        "Expected addresses": "addresses",
        "Profiles": "profiles",
        "Labels": "labels",
        "Ports": "ports",
    }
    answer(context, sorted(rows, key=lambda row: (row["host"], row["name"])), columns)


@host_endpoint.command()
@click.argument("name")
@click.option("--host", "on_host", metavar="HOST", help="Instead of this host.")
@click.option("--interface", metavar="NAME", help="Its name; '*' is all that have no endpoint of their own.")
@click.option("--address", "addresses", metavar="IP", multiple=True, help="An address the interface has; repeatable.")
@click.option("--profile", "profiles", metavar="NAME", multiple=True, help="In order; repeatable.")
@click.option("--label", "labels", metavar="NAME=VALUE", multiple=True, help="Repeatable.")
@click.option("--port", "ports", metavar="NAME:PROTOCOL:PORT", multiple=True, help="A named port; repeatable.")
@pass_context
def add(
    context: CliContext,
    name: str,
    on_host: str | None,
    interface: str | None,
    addresses: tuple[str, ...],
    profiles: tuple[str, ...],
    labels: tuple[str, ...],
    ports: tuple[str, ...],
) -> None:
    """Put an interface under policy, or replace what is said of it. From then on nothing passes to or from the host
    itself there but fail-safe ports and what policies and profiles allow: write those first."""
    check_name(name, field="NAME")
    if interface is None and not addresses:
        raise InvalidRequest("--interface", "name the interface, or give an --address it has")
    if interface is not None and interface != ALL_INTERFACES:
        check_host_interface(interface, field="--interface")
    parsed = [parse_address(each, field="--address") for each in addresses]
    record = HostEndpoint(
        name=interface,
        expected_ipv4_addrs=tuple(address for address in parsed if address.version == 4),
        expected_ipv6_addrs=tuple(address for address in parsed if address.version == 6),
        profile_ids=tuple(check_name(each, field="--profile") for each in profiles),
        labels=parse_labels(labels),
        ports=parse_ports(ports),
    )
    context.may_create = True
    key = HostEndpointKey(on_host or context.host, name)
    click.echo(f"host endpoint {name} of host {key.host} {put_record(context, key, record)}")


@host_endpoint.command()
@click.argument("name")
@click.option("--host", "on_host", metavar="HOST", help="Instead of this host.")
@click.option("--ignore-missing", is_flag=True, help="It is fine if there is none.")
@pass_context
def remove(context: CliContext, name: str, on_host: str | None, ignore_missing: bool) -> None:
    """Take an interface out of policy: everything passes there again."""
    key = HostEndpointKey(on_host or context.host, name)
    if remove_record(context, key):
        click.echo(f"host endpoint {name} of host {key.host} removed")
    elif ignore_missing:
        click.echo(f"host endpoint {name} of host {key.host} does not exist: nothing to remove")
    else:
        raise Missing("host endpoint", f"{key.host}/{name}", "calicoctl host-endpoint show lists them")


def _row(key: HostEndpointKey, record: HostEndpoint) -> dict[str, Any]:
    return {
        "host": key.host,
        "name": key.endpoint,
        "interface": record.name,
        "addresses": [str(address) for address in record.addresses],
        "profiles": list(record.profile_ids),
        "labels": dict(record.labels),
        "ports": [port_word(port) for port in record.ports],
    }

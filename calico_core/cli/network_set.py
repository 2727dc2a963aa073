"""``calicoctl network-set``: labelled networks that selectors of rules match."""

from __future__ import annotations

import click

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.endpoint_words import parse_labels
from calico_core.cli.failure import Missing
from calico_core.cli.output import answer, note
from calico_core.cli.writing import put_record, remove_record
from calico_core.model.addresses import parse_network
from calico_core.model.ids import check_name
from calico_core.model.keys import NETWORK_SETS, NetworkSetKey
from calico_core.model.policies import NetworkSet


@click.group("network-set")
def network_set() -> None:
    """Network sets: CIDRs with labels, which rules select as they select endpoints."""


@network_set.command()
@click.argument("name", required=False)
@pass_context
def show(context: CliContext, name: str | None) -> None:
    """Show the network sets, or one."""
    found = {
        each.key.name: each.record
        for each in context.records.list(NETWORK_SETS)
        if isinstance(each.key, NetworkSetKey) and name in {None, each.key.name}
    }
    for path, reason in sorted(getattr(context.records, "bad_records", {}).items()):
        if path.startswith(NETWORK_SETS):
            note(f"not in force, because it does not decode: {reason}")
    if name is not None and not found:
        raise Missing("network set", name, "calicoctl network-set show lists them")
    rows = [
        {"name": each, "nets": [str(net) for net in record.nets], "labels": dict(record.labels)}
        for each, record in sorted(found.items())
    ]
    answer(context, rows, {"Name": "name", "Networks": "nets", "Labels": "labels"})


@network_set.command()
@click.argument("name")
@click.argument("cidrs", metavar="CIDR…", nargs=-1)
@click.option("--label", "labels", metavar="NAME=VALUE", multiple=True, help="Repeatable.")
@pass_context
def add(context: CliContext, name: str, cidrs: tuple[str, ...], labels: tuple[str, ...]) -> None:
    """Create a network set, or replace what is in it."""
    check_name(name, field="NAME")
    nets = tuple(dict.fromkeys(parse_network(each, field="CIDR") for each in cidrs))
    record = NetworkSet(nets=nets, labels=parse_labels(labels))
    click.echo(f"network set {name} {put_record(context, NetworkSetKey(name), record)}")


@network_set.command()
@click.argument("name")
@click.option("--ignore-missing", is_flag=True, help="It is fine if there is none.")
@pass_context
def remove(context: CliContext, name: str, ignore_missing: bool) -> None:
    """Remove a network set."""
    if remove_record(context, NetworkSetKey(name)):
        click.echo(f"network set {name} removed")
    elif ignore_missing:
        click.echo(f"network set {name} does not exist: nothing to remove")
    else:
        raise Missing("network set", name, "calicoctl network-set show lists them")

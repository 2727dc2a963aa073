"""``calicoctl lab``: hosts in network namespaces to rehearse in."""

from __future__ import annotations

from typing import Any

import click

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.output import answer_one, note, table
from calico_core.lab.demonstration import Step, demonstrate
from calico_core.lab.probes import probe as probe_once
from calico_core.lab.topology import DEFAULT_NAME, Laboratory
from calico_core.model import codec

_name = click.option("--name", default=DEFAULT_NAME, show_default=True, help="The laboratory's name.")


@click.group()
def lab() -> None:
    """A laboratory: hosts in network namespaces, each with a node of its own. The machine's network stays as it is."""


@lab.command()
@_name
@click.option("--hosts", default=2, show_default=True, type=click.IntRange(1, 32), help="How many hosts.")
@click.option("--fabric", type=click.Choice(["bridge", "router"]), default="bridge", show_default=True)
@click.option("--store", default="sqlite", show_default=True, help="Its datastore: sqlite, etcd or a URL.")
@click.option("--routing", type=click.Choice(["bird", "none"]), default="bird", show_default=True)
@click.option("--ipv6", is_flag=True, help="IPv6 as well.")
@click.option("--no-nodes", is_flag=True, help="Namespaces and links only.")
def up(name: str, hosts: int, fabric: Any, store: str, routing: Any, ipv6: bool, no_nodes: bool) -> None:
    """Make a laboratory and start its nodes."""
    made = Laboratory.create(name, hosts, fabric=fabric, datastore=store, routing=routing, ipv6=ipv6).up()
    try:
        for host in made.hosts if not no_nodes else ():
            seconds = host.start_node()
            host.install_cni()
            click.echo(f"{host.name}: node started in {seconds:.2f} s")
    except BaseException:
        note(f"laboratory {name} stays as far as it was made: calicoctl lab down --name {name} ends it")
        raise
    click.echo(f"laboratory {name} is up: {', '.join(host.name for host in made.hosts)}")


@lab.command()
@_name
def down(name: str) -> None:
    """End everything of a laboratory. Already gone is fine."""
    if Laboratory.remove(name):
        click.echo(f"laboratory {name} is gone")
    else:
        click.echo(f"there is no laboratory {name}: nothing to remove")


@lab.command()
@_name
@pass_context
def status(context: CliContext, name: str) -> None:
    """Show hosts, workloads and what is missing."""
    found = Laboratory.load(name).status()
    hosts = [
        [
            host.name,
            ", ".join(map(str, host.addresses)),
            str(host.node_pid or "-"),
            "yes" if host.is_node_ready else "no",
        ]
        for host in found.hosts
    ]
    workloads = [[w.name, w.host, w.network or "-", ", ".join(map(str, w.addresses)) or "-"] for w in found.workloads]
    text = "\n".join(
        [
            f"laboratory {found.name} ({found.state}), fabric {found.fabric}, datastore {found.datastore}",
            table(["Host", "Addresses", "Node pid", "Ready"], hosts),
            table(["Workload", "Host", "Network", "Addresses"], workloads),
            *(f"missing: {what}" for what in found.missing),
        ]
    )
    answer_one(context, codec.to_builtins(found), text)
    if found.missing:
        raise click.exceptions.Exit(1)


@lab.command()
@_name
@click.option("--host", "on_host", required=True, help="On which host.")
@click.option("--network", required=True, help="CNI network; it becomes the profile.")
@click.argument("workload", required=False, default="")
@pass_context
def attach(context: CliContext, name: str, on_host: str, network: str, workload: str) -> None:
    """Make a container and attach it through the host's CNI executable."""
    made = Laboratory.load(name).add_workload(on_host, workload)
    made.attach(network=network)
    address = ", ".join(map(str, made.addresses))
    answer_one(
        context,
        {"workload": made.name, "host": on_host, "network": network, "addresses": list(map(str, made.addresses))},
        f"{made.name} on {on_host}: {address}",
    )


@lab.command()
@_name
@click.argument("workload")
def detach(name: str, workload: str) -> None:
    """Detach a container and remove it."""
    Laboratory.load(name).workload(workload).delete()
    click.echo(f"{workload} is gone")


@lab.command()
@_name
@click.option("--kind", type=click.Choice(["tcp", "udp", "icmp"]), default="tcp", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the target; any free one by default.")
@click.option("--ipv6", is_flag=True)
@click.argument("source")
@click.argument("target")
@pass_context
def probe(context: CliContext, name: str, kind: Any, port: int, ipv6: bool, source: str, target: str) -> None:
    """Does workload SOURCE reach workload TARGET? Exit 6 when it does not."""
    found = Laboratory.load(name)
    result = probe_once(found.workload(source), found.workload(target), kind, port, ip_version=6 if ipv6 else 4)
    text = f"{source} → {target} {kind}: {'reached' if result.is_reachable else 'not reached'}"
    text += f" in {result.rtt_ms:.2f} ms" if result.rtt_ms is not None else ""
    text += f" ({result.detail})" if result.detail else ""
    answer_one(context, codec.to_builtins(result), text)
    if not result.is_reachable:
        raise click.exceptions.Exit(6)


@lab.command()
@_name
@click.option("--keep", is_flag=True, help="Leave it up to play with.")
def demo(name: str, keep: bool) -> None:
    """Show the main job: attach, deny, allow, clean up."""
    for step in demonstrate(name=name, keep=keep):
        _print(step)


def _print(step: Step) -> None:
    click.echo(f"\n{step.title}  ({step.seconds:.2f} s)")
    if step.text:
        click.echo("  " + step.text.replace("\n", "\n  "))
    if step.table:
        click.echo(table(step.table[0], step.table[1:]))

"""``calicoctl node``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.failure import Refused
from calico_core.cli.output import answer, answer_one, note
from calico_core.cli.running import ask_node, run_directory
from calico_core.cli.slowest import print_slowest
from calico_core.cli.status import print_status
from calico_core.errors import CalicoError, InvalidSettings, NotReady
from calico_core.model.hosts import NODE_STOPPED
from calico_core.model.keys import (
    BGP_HOSTS,
    HOSTS,
    NODE_STATUS,
    BgpHostAddressKey,
    BgpHostAsKey,
    NodeStatusKey,
    WorkloadEndpointKey,
)

if TYPE_CHECKING:
    from calico_core.settings import Settings

_STOP_TIMEOUT_S = 20.0
_RESTART_TIMEOUT_S = 90.0


@click.group()
def node() -> None:
    """This host's node."""


@node.command()
@click.option("--ip", metavar="ADDRESS", help="This host's IPv4 address; 'autodetect' is the default.")
@click.option("--ip6", metavar="ADDRESS", help="This host's IPv6 address.")
@click.option("--as", "as_number", metavar="AS", help="This host's AS number.")
@click.option("--name", metavar="NAME", help="This host's name.")
@click.option("--backend", type=click.Choice(["bird", "none"]), help="Who exchanges routes.")
@click.option("--no-default-pools", is_flag=True, help="Create no pools.")
@pass_context
def run(context: CliContext, /, **options: str | None) -> None:
    """Run the node in the foreground until it is stopped. Needs root."""
    if os.geteuid() != 0:
        raise click.UsageError("'calicoctl node run' programs the kernel: run it as root")
    environment = dict(os.environ)
    names = {"ip": "IP", "ip6": "IP6", "as_number": "AS", "name": "NODENAME", "backend": "CALICO_ROUTING_DRIVER"}
    environment.update({names[name]: str(value) for name, value in options.items() if value and name in names})
    if options["no_default_pools"]:
        environment["NO_DEFAULT_POOLS"] = "true"
    if context.datastore_flag:
        environment["CALICO_DATASTORE"] = context.datastore_flag
    os.execve(sys.executable, [sys.executable, "-m", "calico_core.node.main", "run"], environment)  # noqa: S606


@node.command()
@click.option("--force", is_flag=True, help="Also while workloads are attached.")
@pass_context
def stop(context: CliContext, force: bool) -> None:
    """Stop this host's node. What it programmed stays in force."""
    pid = _pid_of_node()
    if pid is None:
        click.echo("No node runs on this host.")
        return
    attached = [
        found.key
        for found in context.records.list(f"{HOSTS}{context.host}/")
        if isinstance(found.key, WorkloadEndpointKey)
    ]
    if attached and not force:
        raise Refused(
            f"{len(attached)} endpoints are attached to this host, among them {attached[0].endpoint}",
            "they keep working without the node, but nothing follows changes; give --force to stop it all the same",
        )
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while _pid_of_node() == pid:
        if time.monotonic() > deadline:
            raise NotReady(f"the node (pid {pid}) has not ended within {_STOP_TIMEOUT_S:g} s")
        time.sleep(0.05)
    click.echo("Node stopped")


@node.command()
def restart() -> None:
    """Start this host's node anew in place, as it is installed now. Calls wait meanwhile."""
    began = time.monotonic()
    before = ask_node("restart")
    while (now := _status_or_none()) is None or now["started"] == before["started"]:
        if time.monotonic() > began + _RESTART_TIMEOUT_S:
            raise NotReady(f"the node has not come back within {_RESTART_TIMEOUT_S:g} s: see its log")
        time.sleep(0.05)
    click.echo(f"Node {now['version']} serves after {time.monotonic() - began:.1f} s")


def _status_or_none() -> Any:
    """None while it does not answer, or answers that it is starting."""
    try:
        return ask_node(required=False)
    except NotReady:
        return None


@node.command()
@click.option("--yes", "-y", "is_sure", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also while workloads are attached.")
@pass_context
def purge(context: CliContext, is_sure: bool, force: bool) -> None:
    """Remove all policy, routes and tunnels of a node that runs here no more, and what reference agents left."""
    if os.geteuid() != 0:
        raise click.UsageError("'calicoctl node purge' programs the kernel: run it as root")
    if _pid_of_node() is not None:
        raise Refused("the node runs and would put everything back", "stop it first: calicoctl node stop")
    from calico_core.node.composition import node_name
    from calico_core.node.purge import purge_host

    settings = _settings_here()
    host = node_name(settings)
    _warn_of_attached(context, host, force=force)
    if not is_sure:
        note(
            f"This removes from host {host}, and from nowhere else: policy tables, chains and sets of Calico (ours, and"
        )
        note("felix-… and cali-… of reference agents), routes of workloads, tunnels and their routes.")
        note("Workloads that are still attached lose their network. Records in the datastore stay.")
        click.confirm("Remove it all?", abort=True, err=True)
    found = purge_host(settings, host)
    value = {"done": list(found.done), "failed": list(found.failed)}
    answer_one(context, value, "\n".join([*found.done, *(f"FAILED: {each}" for each in found.failed)]))
    if found.failed:
        raise click.exceptions.Exit(1)


def _warn_of_attached(context: CliContext, host: str, *, force: bool) -> None:
    """A host that is given up may have no datastore any more: then it is not known who is attached."""
    try:
        found = context.records.list(f"{HOSTS}{host}/")
    except CalicoError as error:
        note(f"it is not known which workloads are attached: {error}")
        return
    attached = [each.key for each in found if isinstance(each.key, WorkloadEndpointKey)]
    if attached and not force:
        raise Refused(
            f"{len(attached)} endpoints are attached to this host, among them {attached[0].endpoint}",
            "detach them first, or give --force to cut them off",
        )


def _settings_here() -> Settings:
    """As the last node here ran; without it as the environment says."""
    from calico_core.node.composition import load_saved_settings
    from calico_core.settings_file import load_local_settings

    here = load_local_settings(os.environ)
    try:
        return load_saved_settings(here.run_directory)
    except (OSError, InvalidSettings):
        return here


@node.command()
@pass_context
def status(context: CliContext) -> None:
    """Is it running, in sync, and whom does it peer with?"""
    print_status(context)


@node.command("confirm-removals")
@pass_context
def confirm_removals(context: CliContext) -> None:  # noqa: ARG001 - every command takes it
    """Tell this host's node that a sudden loss of records was meant: what is gone goes from the kernel too."""
    found = ask_node("confirm-removals")
    assert found is not None
    reason = found["frozen_because"]
    click.echo(f"Confirmed: {reason}. It is removed now." if reason else "Nothing was held back.")


@node.command()
@click.option("--count", type=click.IntRange(1), default=10, show_default=True, help="How many to show.")
@pass_context
def slow(context: CliContext, count: int) -> None:
    """Show the slowest attaches since the node started, and where they spent their time."""
    print_slowest(context, count)


@node.command()
@pass_context
def show(context: CliContext) -> None:
    """Show the hosts the datastore knows."""
    hosts: dict[str, dict[str, object]] = {}
    for found in context.records.list(BGP_HOSTS):
        if isinstance(found.key, BgpHostAddressKey):
            hosts.setdefault(found.key.host, {})[f"ipv{found.key.version}"] = found.record or None
        elif isinstance(found.key, BgpHostAsKey):
            hosts.setdefault(found.key.host, {})["as_number"] = found.record
    alive = {
        found.key.host
        for found in context.records.list(NODE_STATUS)
        if isinstance(found.key, NodeStatusKey) and found.record.state != NODE_STOPPED
    }
    rows = [
        {
            "host": host,
            "ipv4": fields.get("ipv4"),
            "ipv6": fields.get("ipv6"),
            "as_number": fields.get("as_number", "(inherited)"),
            "alive": host in alive,
        }
        for host, fields in sorted(hosts.items())
    ]
    columns = {"Hostname": "host", "IPv4": "ipv4", "IPv6": "ipv6", "AS Num": "as_number", "Alive": "alive"}
    answer(context, rows, columns)


def _pid_of_node() -> int | None:
    """Of the process that holds the lock or answers on the socket. What it says of itself is checked: a node in a
    container has pids of its own."""
    found = ask_node(required=False)
    if found is not None:
        if not _is_node(int(found["pid"])):
            raise Refused("the node runs in a container", "stop the container: docker stop, podman stop")
        return int(found["pid"])
    lock = Path(run_directory(), "node.lock")
    try:
        pid = int(lock.read_text().removeprefix("pid ").strip())
    except PermissionError:
        raise Refused(f"{lock} is for root alone", "ask as root whether a node runs here") from None
    except (OSError, ValueError):
        return None
    return pid if _is_node(pid) else None


def _is_node(pid: int) -> bool:
    try:
        return b"calico" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False

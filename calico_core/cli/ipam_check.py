"""``calicoctl ipam check`` and ``heal``: what is wrong with the addresses, and putting it right."""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from typing import TYPE_CHECKING

import click

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.ipam_views import read_host, read_store
from calico_core.cli.output import answer, note, say
from calico_core.errors import CalicoError

if TYPE_CHECKING:
    from netaddr import IPAddress

    from calico_core.interfaces.datastore import Versioned
    from calico_core.ipam.check import Finding
    from calico_core.ipam.store_view import StoreView
    from calico_core.model.endpoints import WorkloadEndpoint
    from calico_core.model.workloads import AddressRequest

PROBLEMS = 6
_SETTLE_S = 1.0
_COLUMNS = {"Severity": "severity", "Code": "code", "Object": "object", "Detail": "detail", "What to do": "fix"}


@click.command()
@click.option("--exit-code", is_flag=True, help="Exit 6 when there is an error or a warning.")
@pass_context
def check(context: CliContext, exit_code: bool) -> None:
    """Check addresses: the datastore against itself, this host's kernel and its integrations. Changes nothing.

    The kernel is looked at when this runs as root on a host of the datastore.
    """
    import msgspec

    findings = _findings(context)
    if findings or context.output != "table":
        answer(context, [msgspec.structs.asdict(finding) for finding in findings], _COLUMNS)
    counts = Counter(finding.severity for finding in findings)
    note(", ".join(f"{number} {severity}" for severity, number in counts.items()) or "nothing found")
    if exit_code and counts["error"] + counts["warning"]:
        raise click.exceptions.Exit(PROBLEMS)


def _findings(context: CliContext) -> tuple[Finding, ...]:
    """Store and kernel are read one after the other: what is found only because a workload came or went between is
    not found again."""
    from calico_core.ipam.check import check as check_views

    store = read_store(context)
    local = read_host(context, store)
    first = check_views(store, local)
    if local is None or not first:
        return first
    time.sleep(_SETTLE_S)
    store = read_store(context)
    again = {(finding.code, finding.object) for finding in check_views(store, read_host(context, store))}
    return tuple(finding for finding in first if (finding.code, finding.object) in again)


@click.command()
@click.option("--yes", is_flag=True, help="Do it; without this the plan is shown only.")
@pass_context
def heal(context: CliContext, yes: bool) -> None:
    """Assign addresses of endpoints again that the datastore forgot, and put handles and affinities right.

    For a datastore that was restored from an old copy, or written by software that stopped half way. No address is
    taken from anybody: what two want is left to you.
    """
    from calico_core.ipam.repair import repairs

    store = read_store(context)
    forgotten = _forgotten(store)
    plan = [f"assign {_joined(addresses)} to {found.key.path} again" for found, addresses in forgotten]
    plan += [repair.what for repair in repairs(store)]
    if not plan:
        click.echo("Nothing to heal.")
        return
    if not yes:
        say("\n".join(plan))
        note("nothing was done: give --yes to do it")
        return
    failed = 0
    for found, addresses in forgotten:
        failed += not _assign_again(context, found, addresses)
    for repair in repairs(read_store(context)):
        try:
            done = context.records.store.transact(repair.preconditions, repair.operations).committed
        except ValueError as error:  # more blocks than a transaction takes
            note(f"{repair.object}: {error}")
            done = False
        say(f"{'done' if done else 'not done, it was changed meanwhile'}: {repair.what}")
        failed += not done
    if failed:
        raise click.exceptions.Exit(1)


def _forgotten(store: StoreView) -> list[tuple[Versioned[WorkloadEndpoint], tuple[IPAddress, ...]]]:
    """Endpoints with those of their addresses that nobody holds, and no other endpoint carries."""
    from calico_core.ipam.check import check as check_views
    from calico_core.ipam.store_view import addresses_of

    findings = check_views(store)
    free = {finding.object for finding in findings if finding.code == "endpoint-address-free"}
    shared = {finding.object for finding in findings if finding.code == "endpoints-share-address"}
    found = []
    for endpoint in store.endpoints:
        mine = tuple(each for each in addresses_of(endpoint.record) if str(each) in free - shared)
        if mine:
            found.append((endpoint, mine))
    return found


def _assign_again(context: CliContext, found: Versioned[WorkloadEndpoint], addresses: tuple[IPAddress, ...]) -> bool:
    """To the handle it had, while the endpoint stays as it was read."""
    from calico_core.interfaces.datastore import Compare
    from calico_core.interfaces.ipam import Companion
    from calico_core.node.composition import open_ipam

    request = _request(found, addresses)
    unchanged = Companion((Compare(found.key.path, found.mod_revision),))
    ipam = open_ipam(context.records, str(request.attributes["node"]))
    try:
        ipam.auto_assign(request, lambda _addresses: unchanged)
    except CalicoError as error:
        note(f"{_joined(addresses)} of {found.key.path}: {error}")
        return False
    finally:
        ipam.close()
    say(f"done: {_joined(addresses)} belong to {found.key.path} again, by the handle {request.handle}")
    return True


def _request(found: Versioned[WorkloadEndpoint], addresses: tuple[IPAddress, ...]) -> AddressRequest:
    from calico_core.model.keys import WorkloadEndpointKey
    from calico_core.model.workloads import AddressRequest
    from calico_core.plugin_host.loader import load_all
    from calico_core.plugin_host.namespaces import INTEGRATIONS

    key = found.key
    assert isinstance(key, WorkloadEndpointKey)
    plugins = load_all(INTEGRATIONS).loaded
    target = next((each.target for each in plugins if key.orchestrator in each.target.info.filed_under), None)
    handle = target.handle_of(key, found.record) if target is not None else None
    versions = [address.version for address in addresses]
    return AddressRequest(
        handle=handle or f"recovered.{key.host}.{key.endpoint}",
        num_v4=versions.count(4),
        num_v6=versions.count(6),
        requested=addresses,
        attributes={
            "node": key.host,
            "orchestrator": key.orchestrator,
            "recovered": "true",
            "timestamp": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        },
    )


def _joined(addresses: tuple[IPAddress, ...]) -> str:
    return ", ".join(map(str, addresses))

"""The main job, shown: containers get networks, networks are closed to each other, one rule opens one door.

Everything is done by the real executables, as an operator would; the figures are measured on the way.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from calico_core.errors import NotReady
from calico_core.lab.flood import Flood
from calico_core.lab.host import LabHost
from calico_core.lab.probes import probe_until
from calico_core.lab.reachability import Reachability, matrix
from calico_core.lab.topology import DEFAULT_NAME, Laboratory
from calico_core.lab.workload import LabWorkload

FRONTEND, DATABASE = "frontend", "database"
RULE = ("inbound", "allow", "from", "tag", FRONTEND)
_ADD = ("profile", DATABASE, "rule", "add", *RULE)
_REMOVE = ("profile", DATABASE, "rule", "remove", *RULE)
_SETTLE_S = 60.0
_FLOOD_PER_S = 2000.0
_FLOOD_S = 0.5
_POLL_S = 0.01


def _tool() -> str:
    """How the reader calls this program: by its path where that is no command of theirs."""
    started = Path(sys.argv[0]).absolute()
    is_command = started.name != "calicoctl" or shutil.which("calicoctl", path=os.defpath) == str(started)
    return "calicoctl" if is_command else str(started)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One thing done. ``table`` is empty or a heading and its lines; ``seconds`` is how long it took."""

    title: str
    text: str
    seconds: float
    table: tuple[tuple[str, ...], ...] = ()


def demonstrate(name: str = DEFAULT_NAME, *, hosts: int = 1, keep: bool = False) -> Iterator[Step]:
    """Yields each step when it is done. What is there at the end, or when the caller stops listening, is removed.

    With ``keep`` a laboratory that came up stays, also after a failure, to look at. Several hosts need ``bird``.

    :raises NotReady: the network does not do what the step is about.
    """
    started = time.monotonic()
    has_routing = hosts > 1
    if has_routing and shutil.which("bird") is None:
        raise NotReady("two hosts exchange routes by BIRD, which is not installed; try one host")
    lab = Laboratory.create(name, hosts, routing="bird" if has_routing else "none")
    is_finished = False
    try:
        yield from _show(lab, started)
        is_finished = True
    finally:
        if not keep:
            removal = time.monotonic()
            lab.down()
    if is_finished and keep:
        yield Step(title="Kept", text=f"Look around, then: {_tool()} lab down --name {name}", seconds=0.0)
    elif is_finished:
        yield Step(
            title="Everything removed",
            text="Processes, namespaces, links and files are gone; this machine's own network was never touched.",
            seconds=time.monotonic() - removal,
        )


def _show(lab: Laboratory, started: float) -> Iterator[Step]:
    lab.up()
    yield Step(
        title=f"A laboratory of {_count(len(lab.hosts), 'host')}",
        text="Each host is a network namespace of its own; they meet on a bridge that stands in a third one.",
        seconds=time.monotonic() - started,
        table=(("Host", "Address"), *((host.name, str(host.addresses[0])) for host in lab.hosts)),
    )
    yield _start_nodes(lab.hosts)
    attached = time.monotonic()
    workloads, table = _attach(lab)
    web, other, database = workloads
    yield Step(
        title="Three containers on two networks",
        text="Attached by the CNI plugin, as containerd or podman would: an address, a route, an endpoint record.",
        seconds=time.monotonic() - attached,
        table=table,
    )
    yield _look_closed(workloads)
    yield _open_door(lab.hosts[0], web, other, database)
    looked = time.monotonic()
    reachability = matrix(workloads)
    _expect(reachability, database, (web, other), is_reachable=True)
    if reachability.find(database.name, web.name).is_reachable:
        raise NotReady(f"the rule opened one direction only, but {database.name} reaches {web.name}")
    yield Step(
        title="Who reaches whom now",
        text=f"{FRONTEND} reaches {DATABASE}; the way back stays closed to new connections.",
        seconds=time.monotonic() - looked,
        table=reachability.rows(),
    )
    yield _close_door(lab.hosts[0], web, database)


def _start_nodes(hosts: Sequence[LabHost]) -> Step:
    started = time.monotonic()
    rows = [("Host", "Node ready after", "Process")]
    for host in hosts:
        seconds = host.start_node()
        host.install_cni()
        rows.append((host.name, f"{seconds:.2f} s", str(host.node_pid)))
    return Step(
        title="A node on each, and the CNI plugin installed",
        text="One process a host: it hands out addresses, programs policy and answers the CNI plugin.",
        seconds=time.monotonic() - started,
        table=tuple(rows),
    )


def _attach(lab: Laboratory) -> tuple[tuple[LabWorkload, LabWorkload, LabWorkload], tuple[tuple[str, ...], ...]]:
    first, last = lab.hosts[0], lab.hosts[-1]
    wanted = (("web-1", first, FRONTEND), ("web-2", last, FRONTEND), ("db-1", last, DATABASE))
    workloads: list[LabWorkload] = []
    rows: list[tuple[str, ...]] = [("Container", "Host", "Network", "Address", "Attached in")]
    for name, host, network in wanted:
        workload = lab.add_workload(host, name)
        started = time.monotonic()
        workload.attach(network=network)
        milliseconds = (time.monotonic() - started) * 1000
        workloads.append(workload)
        rows.append((name, host.name, network, str(workload.addresses[0]), f"{milliseconds:.0f} ms"))
    return (workloads[0], workloads[1], workloads[2]), tuple(rows)


def _look_closed(workloads: tuple[LabWorkload, LabWorkload, LabWorkload]) -> Step:
    web, other, database = workloads
    started = time.monotonic()
    for source, target in ((web, other), (other, web)):
        if not probe_until(source, target, is_reachable=True, within_s=_SETTLE_S).is_reachable:
            raise NotReady(f"{source.name} does not reach {target.name}, though both are on {FRONTEND}")
    settled_s = time.monotonic() - started
    reachability = matrix(workloads)
    _expect(reachability, database, (web, other), is_reachable=False)
    text = "By TCP: containers of one network reach each other, others are strangers."
    if web.host.name != other.host.name:
        text += f"\nThe hosts had told each other their routes (BGP) after {settled_s:.1f} s."
    return Step(
        title="Who reaches whom",
        text=text,
        seconds=time.monotonic() - started,
        table=reachability.rows(),
    )


def _open_door(host: LabHost, web: LabWorkload, other: LabWorkload, database: LabWorkload) -> Step:
    started = time.monotonic()
    host.calicoctl(*_ADD)
    written = time.monotonic()
    for source in (web, other):
        if not probe_until(source, database, is_reachable=True, within_s=_SETTLE_S).is_reachable:
            raise NotReady(f"the rule is written, but {source.name} does not reach {database.name}")
    waited_ms = (time.monotonic() - written) * 1000
    return Step(
        title="One rule",
        text=f"$ calicoctl {' '.join(_ADD)}\nThe first connection passed {waited_ms:.0f} ms after the command ended.",
        seconds=time.monotonic() - started,
    )


def _close_door(host: LabHost, web: LabWorkload, database: LabWorkload) -> Step:
    started = time.monotonic()
    with Flood(web, database, rate_per_s=_FLOOD_PER_S) as flood:
        _await(lambda: flood.report().arrived > 0, f"the rule stands, but no packet arrives at {database.name}")
        host.calicoctl(*_REMOVE)
        ended_s = flood.report().seconds
        if probe_until(web, database, is_reachable=False, within_s=_SETTLE_S).is_reachable:
            raise NotReady(f"the rule is gone, but {web.name} still reaches {database.name}")
        closed = flood.report()
        _await(lambda: flood.report().seconds >= closed.seconds + _FLOOD_S, "the flood stands still")
        final = flood.stop()
    if final.arrived > closed.arrived:
        raise NotReady(f"{final.arrived - closed.arrived} forbidden packets arrived at {database.name}")
    last_ms = ((final.last_arrival_s or 0.0) - ended_s) * 1000
    order = "before" if last_ms < 0 else "after"
    return Step(
        title="The rule withdrawn",
        text=f"$ calicoctl {' '.join(_REMOVE)}\n"
        f"{web.name} sent {_FLOOD_PER_S:g} packets a second all the while: the last one to arrive passed "
        f"{abs(last_ms):.0f} ms {order} the command ended.\n"
        f"Of the {final.sent - closed.sent} sent once it was closed, {final.arrived - closed.arrived} arrived.",
        seconds=time.monotonic() - started,
    )


def _await(is_so: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _SETTLE_S
    while not is_so():
        if time.monotonic() > deadline:
            raise NotReady(otherwise)
        time.sleep(_POLL_S)


def _expect(
    reachability: Reachability, target: LabWorkload, sources: Sequence[LabWorkload], *, is_reachable: bool
) -> None:
    for source in sources:
        if reachability.find(source.name, target.name).is_reachable != is_reachable:
            word = "does not reach" if is_reachable else "reaches"
            raise NotReady(f"{source.name} {word} {target.name}, against the policy")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

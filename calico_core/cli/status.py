"""``calicoctl status``."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import click

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.output import answer_one, note, table
from calico_core.cli.running import ask_node
from calico_core.errors import NotReady

_PEER_TYPES = {"mesh": "node-to-node mesh", "node": "node specific", "global": "global"}


@click.command()
@pass_context
def status(context: CliContext) -> None:
    """Is this host's node well? Whom does it peer with? Exit 1 when it is not running or not in sync."""
    print_status(context)


def print_status(context: CliContext) -> None:
    try:
        found = ask_node()
    except NotReady as error:
        answer_one(context, {"is_running": False, "reason": str(error)}, "calico-node is not running.")
        note(f"  {error}")
        raise click.exceptions.Exit(1) from error
    assert found is not None
    answer_one(context, found, _text(found))
    if not found["is_in_sync"]:
        raise click.exceptions.Exit(1)


def _text(found: dict[str, Any]) -> str:
    endpoints = Counter(entry["status"] for entry in found["endpoints"].values())
    counts = ", ".join(f"{count} {name}" for name, count in sorted(endpoints.items())) or "none"
    lines = [
        f"calico-node {found['version']} on {found['host']}: running for {_ago(found['started'])} (pid {found['pid']})",
        f"  engine       {'in sync' if found['is_in_sync'] else 'not in sync yet'}, dataplane {found['dataplane']}",
        *([f"               {found['dataplane_lack']}"] if found.get("dataplane_lack") else []),
        f"  datastore    {found['datastore']}",
        f"  endpoints    {counts}",
    ]
    lines += [f"  {path}: {e['status']}: {e['reason']}" for path, e in found["endpoints"].items() if e["reason"]]
    lines += [
        f"  {path}: {e['status']}: {e['reason']}" for path, e in found.get("host_endpoints", {}).items() if e["reason"]
    ]
    lines += [f"  integration  {name}: {state}" for name, state in sorted(found["integrations"].items())]
    lines += _removals(found.get("removals", {}))
    lines += _collector(found.get("collector", {}))
    lines += [f"  bad record   {record}" for record in found["bad_records"]]
    lines += [f"  last error   {found['last_error']}"] if found["last_error"] else []
    return "\n".join([*lines, *_routing(found["routing"])])


def _removals(found: dict[str, Any]) -> list[str]:
    if found.get("state") != "frozen":
        return []
    way_out = "the kernel keeps what it has until the records are back, or: calicoctl node confirm-removals"
    return [f"  removals     FROZEN for {_ago(found['since'])}: {found['because']}", f"               {way_out}"]


def _collector(found: dict[str, Any]) -> list[str]:
    if found.get("state") == "frozen":
        return [
            f"  collector    FROZEN for {_ago(found['frozen_since'])}: {found['frozen_because']}",
            "               nothing is freed or removed until it is undone, or confirmed: calicoctl ipam unfreeze",
        ]
    counts = (("suspects", "suspected"), ("without_interface", "endpoints without an interface"))
    lines = [f"  collector    {len(found[name])} {text}" for name, text in counts if found.get(name)]
    return [*lines, *([f"  collector    {found['last_error']}"] if found.get("last_error") else [])]


def _routing(routing: dict[str, Any]) -> list[str]:
    lines = [f"  routing      {routing['driver']}, {'running' if routing['is_running'] else 'NOT running'}"]
    lines += [f"  routing      {text}" for text in (routing.get("rejected"), routing["last_error"]) if text]
    peers = routing.get("peers", [])
    if not peers:
        return lines
    rows = [
        [p["ip"], _PEER_TYPES.get(p["origin"], p["origin"]), p["state"], p.get("since", ""), p.get("info", "")]
        for p in peers
    ]
    return [*lines, "", table(["Peer address", "Peer type", "State", "Since", "Info"], rows)]


def _ago(started: float) -> str:
    seconds = int(max(0, time.time() - started))
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"

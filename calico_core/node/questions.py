"""What calicoctl asks a running node over its socket, and what the node's parts say."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping

import msgspec
from netaddr import IPAddress

from calico_core import __version__
from calico_core.errors import CalicoError, InvalidSettings, NotReady
from calico_core.interfaces.integration import Call, CallReply
from calico_core.interfaces.routing import Routing
from calico_core.model import codec
from calico_core.node.agent import Agent
from calico_core.node.agent_state import AgentState
from calico_core.node.collector import Collector
from calico_core.node.denied import DeniedLog, parse_question
from calico_core.node.interface_mtus import interface_mtus
from calico_core.node.router import Router
from calico_core.node.tunnels import TunnelKeeper
from calico_core.settings import Settings
from calico_core.workload.service import WorkloadService


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """A node as it is now. None: that part has not started yet. ``lists``: who has which address, by integration."""

    host: str
    started: float
    settings: Settings
    dataplane_name: str
    dataplane_lack: str
    integrations: Mapping[str, str]
    lists: Callable[[], Mapping[str, Mapping[IPAddress, str]]]
    state: AgentState | None
    agent: Agent | None
    router: Router | None
    routing: Routing
    tunnels: TunnelKeeper | None
    collector: Collector | None
    workloads: WorkloadService | None
    denied: DeniedLog | None
    restart: Callable[[], None]


def answer(call: Call, parts: Parts) -> CallReply:
    """JSON on stdout; status 2 for an unknown question, 1 for one that cannot be answered now."""
    command, *words = call.stdin.decode(errors="replace").split() or ["status"]
    answers: dict[str, Callable[[], object]] = {
        "status": lambda: status(parts),
        "addresses": lambda: _addresses(parts),
        "confirm-removals": lambda: {"frozen_because": parts.agent.confirm_removals() if parts.agent else ""},
        "slow": lambda: _slow(parts),
        "mtus": lambda: _mtus(parts),
        "unfreeze": lambda: {"frozen_because": parts.collector.unfreeze() if parts.collector else ""},
        "counters": lambda: _rule_counts(parts),
        "restart": lambda: _restart(parts),
        "denied": lambda: _denied_after(parts, words),
    }
    if command not in answers:
        return CallReply(status=2, stderr=f"unknown command {command!r}; known: {', '.join(answers)}\n".encode())
    try:
        return CallReply(stdout=msgspec.json.encode(answers[command]()))
    except (CalicoError, ValueError) as error:
        return CallReply(status=1, stderr=f"{error}\n".encode())


def status(parts: Parts) -> dict[str, object]:
    """For people and programs: JSON-ready."""
    state = parts.state
    return {
        "host": parts.host,
        "version": __version__,
        "pid": os.getpid(),
        "started": parts.started,
        "datastore": _without_secrets(parts.settings.datastore),
        "dataplane": parts.dataplane_name,
        "dataplane_lack": parts.dataplane_lack,
        "is_in_sync": bool(parts.agent and parts.agent.is_in_sync),
        "endpoints": {
            key.path: {"status": status, "reason": why}
            for key, (status, why) in (state.endpoints if state else {}).items()
        },
        "host_endpoints": {
            key.path: {"status": status, "reason": why}
            for key, (status, why) in (state.host_endpoints if state else {}).items()
        },
        "bad_records": list(state.bad_records) if state else [],
        "last_error": state.last_error if state else "",
        "removals": _removals(state),
        "routing": {
            **codec.to_builtins(parts.routing.status()),
            "last_error": parts.router.last_error if parts.router else "",
        },
        "tunnels": parts.tunnels.status() if parts.tunnels else {},
        "integrations": dict(parts.integrations),
        "collector": parts.collector.status() if parts.collector else {"state": "off"},
    }


def _addresses(parts: Parts) -> dict[str, dict[str, str]]:
    return {name: {str(each): whose for each, whose in found.items()} for name, found in parts.lists().items()}


def _rule_counts(parts: Parts) -> list[dict[str, object]]:
    if parts.agent is None:
        raise NotReady("the agent has not started yet")
    return [each._asdict() for each in parts.agent.rule_counts.ask()]


def _denied_after(parts: Parts, words: list[str]) -> dict[str, object]:
    settings = parts.settings
    if settings.denied_group == 0:
        raise InvalidSettings(
            "denied_group",
            settings.origins.get("denied_group", "default"),
            "it is 0: no packet is told of; give a group of NFLOG and start the node again",
        )
    if parts.denied is None:
        raise NotReady("the agent has not started yet")
    return parts.denied.after(*parse_question(iter(words)))


def _restart(parts: Parts) -> dict[str, object]:
    """Asked of this process; the answer is out before it stops."""
    parts.restart()
    return {"started": parts.started}


def _slow(parts: Parts) -> dict[str, object]:
    """The slowest attaches since the start."""
    if parts.workloads is None:
        return {"attaches": 0, "slowest": []}
    slowest = parts.workloads.slowest
    return {"attaches": slowest.count, "slowest": slowest.list()}


def _mtus(parts: Parts) -> dict[str, object]:
    if parts.agent is None or parts.state is None or parts.tunnels is None:
        raise NotReady("the agent has not started yet")
    workloads = {key: parts.agent.workload(key) for key in parts.state.endpoints}
    return interface_mtus(
        {key: found.interface for key, found in workloads.items() if found is not None},
        given_bytes=parts.settings.mtu_bytes or parts.tunnels.workload_mtu_bytes,
    )


def _removals(state: AgentState | None) -> dict[str, object]:
    freeze = state.freeze if state else None
    if freeze is None:
        return {"state": "following"}
    since = time.time() - (time.monotonic() - freeze.since)
    return {"state": "frozen", "because": freeze.reason, "since": round(since, 3), "waiting": freeze.waiting}


def _without_secrets(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"

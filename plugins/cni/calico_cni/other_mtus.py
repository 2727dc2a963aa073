"""Interfaces of containers whose MTU is not what an attach would give them now: from before it was changed, say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calico_cni.identity import ORCHESTRATORS
from calico_cni.programs import NETWORK_PROGRAM


def other_mtus(context: Any, socket: Path, network_list: Path) -> list[dict[str, Any]]:
    """JSON-ready. ``context``: of the command line, which asks the node at the socket. Empty when none answers, or when
    neither the network list nor the node names an MTU, which leaves it to the kernel."""
    answer = context.ask_node("mtus", socket=str(socket))
    would_be = answer and (_listed(network_list) or answer["given_bytes"])
    if not would_be:
        return []
    return [
        {**each, "would_be_bytes": would_be}
        for each in answer["interfaces"]
        if each["orchestrator"] in ORCHESTRATORS and each["mtu_bytes"] != would_be
    ]


def _listed(network_list: Path) -> int | None:
    """What the installed list says, if it can be read: a broken one is told of by those who use it."""
    try:
        plugins = json.loads(network_list.read_bytes())["plugins"]
        found = [each.get("mtu") for each in plugins if each.get("type") == NETWORK_PROGRAM]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return next((each for each in found if type(each) is int and each > 0), None)

"""Asking the node that runs on this host."""

from __future__ import annotations

import json
import os
from typing import Any

from calico_core.errors import NotReady
from calico_core.settings_file import load_local_settings


def run_directory() -> str:
    return load_local_settings(os.environ).run_directory


def ask_node(command: str = "status", *, required: bool = True, timeout_s: float = 5, socket: str = "") -> Any:
    """What the node answers (its own status); None when none answers and it is not ``required``. ``socket``: its path,
    where it is not the settings that say it. Raises ``NotReady``."""
    from calico_core.interfaces.integration import Call
    from calico_core.node.socket_api import call_node

    path = socket or load_local_settings(os.environ).socket
    try:
        reply = call_node(path, Call(program="node", environment={}, stdin=command.encode()), timeout_s=timeout_s)
    except OSError as error:
        if required:
            raise NotReady(f"no node answers on {path}: {error.strerror or error}") from error
        return None
    if reply is None or reply.status != 0:
        raise NotReady(reply.stderr.decode(errors="replace").strip() if reply else "the node gave no answer")
    return json.loads(reply.stdout)

"""``-t`` on behalf of the installer: would an ADD with the list that is about to appear be served?"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calico_cni.programs import IPAM_PROGRAM, NETWORK_PROGRAM

_ATTEMPT_S = 20.0
_PAUSE_S = 1.0


def reason_against(
    executables: Sequence[Path], configuration: bytes, environment: Mapping[str, str], *, wait_s: float
) -> str:
    """Why not, when it is so until ``wait_s`` have passed; empty: it would. ``configuration`` is a list; a process that
    runs in place of a node that is down gets ``environment``."""
    deadline = time.monotonic() + wait_s
    while True:
        reason = _reason_now(executables, configuration, environment)
        if not reason or time.monotonic() + _PAUSE_S > deadline:
            return reason
        time.sleep(_PAUSE_S)


def _reason_now(executables: Sequence[Path], configuration: bytes, environment: Mapping[str, str]) -> str:
    whole = json.loads(configuration)
    for plugin in whole["plugins"]:
        program = _program(plugin)
        path = next((each for each in executables if each.name == program), None)
        if path is None:
            continue
        stdin = {"cniVersion": whole.get("cniVersion", ""), "name": whole.get("name", ""), **plugin}
        reason = _failure(path, json.dumps(stdin).encode(), environment)
        if reason:
            return f"{program} -t: {reason}"
    return ""


def _program(plugin: Mapping[str, Any]) -> str | None:
    """Which of ours has a part in it."""
    if plugin.get("type") == NETWORK_PROGRAM:
        return NETWORK_PROGRAM
    ipam = plugin.get("ipam")
    return IPAM_PROGRAM if isinstance(ipam, dict) and ipam.get("type") == IPAM_PROGRAM else None


def _failure(path: Path, stdin: bytes, environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            [str(path), "-t"], env=dict(environment), input=stdin, capture_output=True, timeout=_ATTEMPT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if not done.returncode:
        return ""
    try:
        return str(json.loads(done.stdout)["msg"])
    except (ValueError, KeyError, TypeError):
        return (done.stderr or done.stdout).decode(errors="replace").strip() or f"status {done.returncode}"

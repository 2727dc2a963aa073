"""Stands in for a Mesos agent with its network module: what it runs, in which order, and what it forgets.

There are no Mesos packages to test with. This keeps to the real module's behaviour, its leaks included: addresses
reserved before a failed allocation stay, and a restart forgets every container. Source: mesos specification 2.1, 3, 12.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

READ_LIMIT = 40_960
TIMEOUT_S = 30.0  # of ours: the real one waits for ever


class AgentFailure(Exception):
    """A step of the agent failed, with the text that its log would show."""


class MesosAgent:
    """``command`` is split at spaces, as the module does, and gets this process' environment. ``requests`` keeps what
    was asked, in order."""

    def __init__(self, command: str, *, hostname: str = "", environment: Mapping[str, str] | None = None) -> None:
        self.command = command
        self.hostname = hostname
        self.requests: list[dict[str, Any]] = []
        self._environment = {**os.environ, **(environment or {})}
        self._known: dict[str, dict[str, Any]] = {}

    def prepare(self, container_id: str, network_infos: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """The addresses; none for a container on the host's network."""
        if not network_infos:
            return ()
        wanted, count = _wanted(network_infos)
        info = network_infos[0]
        uid = str(uuid.uuid4())
        extra: dict[str, Any] = {}
        if info.get("groups"):
            extra["netgroups"] = list(info["groups"])
        if info.get("labels"):
            extra["labels"] = list(info["labels"]["labels"])
        addresses = list(wanted)
        if wanted:
            self.ask("reserve", {"hostname": self.hostname, "ipv4_addrs": list(wanted), "uid": uid, **extra})
        if count:
            numbers = {"num_ipv4": count, "num_ipv6": 0}
            reply = self.ask("allocate", {"hostname": self.hostname, **numbers, "uid": uid, **extra})
            found = _texts(reply, "ipv4") + _texts(reply, "ipv6")
            if not found:
                raise AgentFailure("No IP addresses allocated")
            addresses += found
        self._known[container_id] = {"addresses": addresses, "extra": extra}
        return tuple(addresses)

    def isolate(self, container_id: str, pid: int) -> None:
        known = self._known.get(container_id)
        if known is None:
            return
        arguments = {
            "hostname": self.hostname,
            "container_id": container_id,
            "pid": pid,
            "ipv4_addrs": known["addresses"],
        }
        self.ask("isolate", {**arguments, **known["extra"]})

    def cleanup(self, container_id: str) -> None:
        known = self._known.get(container_id)
        if known is None:
            return
        self.ask("release", {"ips": known["addresses"]})
        self.ask("cleanup", {"hostname": self.hostname, "container_id": container_id})
        del self._known[container_id]

    def restart(self) -> None:
        """Everything known is lost; ``recover`` of the module does nothing."""
        self._known.clear()

    def ask(self, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """One execution; the reply without ``error``."""
        request = {"command": command, "args": dict(arguments)}
        self.requests.append(request)
        with subprocess.Popen(
            self.command.split(" "), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment
        ) as process:
            stdout, _ = process.communicate(json.dumps(request, separators=(",", ":")).encode(), TIMEOUT_S)
        if not stdout:
            raise AgentFailure("Got no response")
        try:
            reply = json.loads(stdout[:READ_LIMIT])
        except ValueError as error:
            raise AgentFailure(f"Failed to parse response: {error}") from error
        if not isinstance(reply, dict):
            raise AgentFailure("Response is not a JSON object")
        error_text = reply.pop("error", None)
        if error_text is not None:
            raise AgentFailure(str(error_text))
        return reply


def _wanted(network_infos: Sequence[Mapping[str, Any]]) -> tuple[list[str], int]:
    """Addresses to reserve, and the number to allocate."""
    if len(network_infos) > 1:
        raise AgentFailure("NetworkIsolator does not support multiple NetworkInfos")
    info = network_infos[0]
    if "protocol" in info or "ip_address" in info:
        raise AgentFailure("NetworkInfo.protocol and .ip_address are deprecated")
    entries = info.get("ip_addresses", [])
    if not entries:
        raise AgentFailure("NetworkInfo asks for no address")
    addresses, count = [], 0
    for entry in entries:
        if "ip_address" in entry and "protocol" in entry:
            raise AgentFailure("IPAddress has both protocol and ip_address")
        if entry.get("protocol") == "IPv6":
            raise AgentFailure("IPv6 is not supported")
        if "ip_address" in entry:
            addresses.append(str(entry["ip_address"]))
        else:
            count += 1
    return addresses, count


def _texts(reply: Mapping[str, Any], field: str) -> list[str]:
    found = reply.get(field, [])
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise AgentFailure(f"{field} is not a list of strings")
    return found

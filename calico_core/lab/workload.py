"""A container of a laboratory: a network namespace that is attached by the real CNI executable."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from netaddr import IPAddress

from calico_core.dataplane.linux import netns
from calico_core.errors import InvalidRequest, ToolFailed
from calico_core.lab import processes
from calico_core.lab.fabric import create_stub
from calico_core.lab.host import LabHost
from calico_core.lab.journal import Journal
from calico_core.lab.plan import check_name
from calico_core.lab.record import LabRecord, WorkloadRecord
from calico_core.lab.station import open_socket
from calico_core.model.addresses import parse_address

CNI_VERSION = "1.0.0"
PLUGIN = "calico"


class LabWorkload:
    """A station (see :mod:`station`). The container ID is fixed: attaching again is the same container."""

    def __init__(self, journal: Journal, host: LabHost, record: WorkloadRecord) -> None:
        self._journal = journal
        self.host = host
        self._record = record

    @classmethod
    def create(cls, journal: Journal, host: LabHost, name: str = "") -> LabWorkload:
        """Make its namespace. :raises InvalidRequest: the name is taken."""
        if name:
            check_name(name, field="workload")
        made: list[WorkloadRecord] = []

        def change(now: LabRecord) -> LabRecord:
            number = now.next_workload
            record = WorkloadRecord(
                number=number,
                name=name or f"w-{number}",
                host=host.name,
                namespace=f"{now.name}-w-{number}",
                container_id=f"{now.name}-{host.name}-w-{number}",
            )
            if any(each.name == record.name for each in now.workloads):
                raise InvalidRequest("workload", f"{record.name!r} exists already")
            if (netns.NAMED / record.namespace).exists():
                raise InvalidRequest("workload", f"network namespace {record.namespace} exists and is not of this lab")
            made.append(record)
            return msgspec.structs.replace(now, workloads=(*now.workloads, record), next_workload=number + 1)

        journal.update(change)
        create_stub(made[0].namespace)
        return cls(journal, host, made[0])

    @property
    def name(self) -> str:
        return self._record.name

    @property
    def namespace(self) -> Path:
        return netns.NAMED / self._record.namespace

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Of the CNI result; empty when it is not attached."""
        return self._record.addresses

    @property
    def container_id(self) -> str:
        return self._record.container_id

    @property
    def interface(self) -> str:
        return self._record.interface

    @property
    def network(self) -> str:
        """Empty when it is not attached."""
        return self._record.network

    def attach(
        self,
        *,
        network: str,
        cni_args: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
    ) -> dict[str, Any]:
        """CNI ADD; gives the result. ``config`` is laid over the plain network configuration.

        :raises ToolFailed: the plugin refused; ``stderr`` is its error object's text.
        """
        arguments = dict(cni_args or {})
        # before the call: whatever happens, detach knows what to undo
        self._change(network=network, cni_args=arguments)
        done = self._call("ADD", network, arguments, config, timeout_s)
        result: dict[str, Any] = json.loads(done.stdout)
        self._change(addresses=_addresses(result))
        return result

    def detach(self, *, config: Mapping[str, Any] | None = None, timeout_s: float = 60.0) -> None:
        """CNI DEL. Not attached is success."""
        if not self.network:
            return
        self._call("DEL", self.network, self._record.cni_args, config, timeout_s)
        self._change(network="", cni_args={}, addresses=())

    def delete(self) -> None:
        """Detach it and remove its namespace with every process in it. Gone is success."""
        self.detach()
        processes.stop(processes.inside([self.namespace]), grace_s=1.0)
        netns.delete_namespace(self._record.namespace)
        self._journal.update(
            lambda now: msgspec.structs.replace(
                now, workloads=tuple(each for each in now.workloads if each.number != self._record.number)
            )
        )

    def call_cni(
        self,
        command: str,
        *,
        network: str,
        config: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Any CNI command, as a runtime on the host would; its status is the caller's to judge.

        ``environment`` is laid over the CNI variables.
        """
        whole = {"cniVersion": CNI_VERSION, "name": network, "type": PLUGIN, "ipam": {"type": "calico-ipam"}}
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": str(self.namespace),
            "CNI_IFNAME": self.interface,
            "CNI_PATH": str(self.host.cni_bin_directory),
        }
        plugin = self.host.cni_bin_directory / PLUGIN
        if not plugin.exists():
            raise InvalidRequest("host", f"{self.host.name} has no CNI plugin yet; install it first")
        return self.host.run(
            (str(plugin),),
            environment=variables | dict(environment or {}),
            stdin=json.dumps(whole | dict(config or {})),
            check=False,
            timeout_s=timeout_s,
        )

    def run(
        self, argv: Sequence[str], *, stdin: str = "", check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside the container's network."""
        done = processes.run(
            argv, namespace=processes.require_namespace(self.namespace), stdin=stdin, timeout_s=timeout_s
        )
        if check and done.returncode:
            raise ToolFailed(tuple(argv), done.returncode, done.stderr or done.stdout)
        return done

    def open_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A non-blocking socket inside; the caller closes it."""
        return open_socket(self, family, kind, protocol)

    def _call(
        self,
        command: str,
        network: str,
        cni_args: Mapping[str, str],
        config: Mapping[str, Any] | None,
        timeout_s: float,
    ) -> subprocess.CompletedProcess[str]:
        joined = ";".join(f"{name}={value}" for name, value in cni_args.items())
        environment = {"CNI_ARGS": joined} if joined else {}
        done = self.call_cni(command, network=network, config=config, environment=environment, timeout_s=timeout_s)
        if done.returncode:
            raise ToolFailed((PLUGIN, command, self.name), done.returncode, _reason(done))
        return done

    def _change(self, **fields: Any) -> None:
        def change(now: LabRecord) -> LabRecord:
            workloads = tuple(
                msgspec.structs.replace(each, **fields) if each.number == self._record.number else each
                for each in now.workloads
            )
            return msgspec.structs.replace(now, workloads=workloads)

        self._journal.update(change)
        self._record = msgspec.structs.replace(self._record, **fields)


def _addresses(result: Mapping[str, Any]) -> tuple[IPAddress, ...]:
    """From either shape of a CNI result (0.3.0 and later, or 0.2.0)."""
    texts = [entry["address"] for entry in result.get("ips", ())]
    texts += [result[family]["ip"] for family in ("ip4", "ip6") if family in result]
    return tuple(parse_address(text.partition("/")[0]) for text in texts)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The plugin's own words: a CNI error object on stdout, else whatever it printed."""
    try:
        error = json.loads(done.stdout)
        return f"{error['msg']} {error.get('details', '')} (CNI code {error['code']})"
    except (ValueError, KeyError, TypeError):
        return done.stdout + done.stderr

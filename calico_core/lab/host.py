"""One host of a laboratory: a network namespace, directories of its own, and the programs an operator runs there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from netaddr import IPAddress

from calico_core.dataplane.linux import netns
from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.errors import InvalidRequest, NotReady, ToolFailed
from calico_core.lab import fabric as links
from calico_core.lab import processes
from calico_core.lab.journal import Journal
from calico_core.lab.record import HostRecord, LabRecord, ProcessRecord
from calico_core.log import get_logger

log = get_logger(__name__)

#: What the node prints when it serves (node specification 1.4, phase 8).
READY_LINE = "Calico node started successfully"
NODE = "calico-node"
_MODULES = {NODE: "calico_core.node.main", "calicoctl": "calico_core.cli.main"}
_POLL_S = 0.01
#: Settings of the caller must not leak into the hosts.
_FOREIGN_PREFIXES = ("CALICO", "ETCD_", "FELIX_", "CNI_", "DOCKER_")
_FOREIGN_NAMES = frozenset({"IP", "IP6", "AS", "NODENAME", "HOSTNAME", "NO_DEFAULT_POOLS"})


class LabHost:
    """A station (see :mod:`station`): ``name``, ``namespace``, ``addresses``."""

    def __init__(
        self, journal: Journal, host: HostRecord, lab: LabRecord, environment: Mapping[str, str] | None = None
    ) -> None:
        self._journal = journal
        self._host = host
        self._lab = lab
        self._extra = dict(environment or {})

    @property
    def name(self) -> str:
        return self._host.name

    @property
    def namespace(self) -> Path:
        return netns.NAMED / self._host.namespace

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        return self._host.addresses

    @property
    def directory(self) -> Path:
        """Everything of the host lies below it."""
        return self._journal.directory / self._host.name

    @property
    def socket(self) -> Path:
        """Where the node answers calicoctl and the shims."""
        return self.directory / "run" / "node.sock"

    @property
    def cni_bin_directory(self) -> Path:
        return self.directory / "cni" / "bin"

    @property
    def cni_conf_directory(self) -> Path:
        return self.directory / "cni" / "net.d"

    @property
    def plugin_directory(self) -> Path:
        """Where Docker would look for the socket of the libnetwork plugin."""
        return self.directory / "plugins"

    @property
    def node_log(self) -> Path:
        return self.directory / "calico-node.log"

    @property
    def environment(self) -> dict[str, str]:
        """For every program of this host: the caller's environment without settings, and the host's own."""
        own = {name: value for name, value in os.environ.items() if not _is_setting(name)}
        by_version = {address.version: str(address) for address in self.addresses}
        own |= {
            "NODENAME": self.name,
            "CALICO_HOSTNAME": self.name,
            "HOSTNAME": self.name,
            "IP": by_version[4],
            "IP6": by_version.get(6, "none"),
            "CALICO_DATASTORE": self._lab.datastore,
            "CALICO_SOCKET": str(self.socket),
            "CALICO_RUN_DIRECTORY": str(self.directory / "run"),
            "CALICO_STATE_DIRECTORY": str(self.directory / "state"),
            "CALICO_ROUTING_DRIVER": self._lab.routing,
            "CALICO_LIBNETWORK_PLUGIN_DIR": str(self.plugin_directory),
            "PYTHONUNBUFFERED": "1",  # the ready line must not wait in a buffer
        }
        return own | self._extra

    @property
    def has_uplink(self) -> bool:
        with links.opened(self.namespace) as descriptor, RouteSocket(descriptor) as inside:
            return inside.find_link(links.UPLINK) is not None

    @property
    def node_pid(self) -> int | None:
        """None when no node runs."""
        process = self._find_node()
        return process.pid if process else None

    @property
    def is_node_ready(self) -> bool:
        """Whether the node has its socket. Who answers there is not asked."""
        return self.socket.is_socket()

    def make_directories(self) -> None:
        for path in (
            self.directory / "run",
            self.directory / "state",
            self.cni_bin_directory,
            self.cni_conf_directory,
            self.plugin_directory,
        ):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def start_node(self, *, environment: Mapping[str, str] | None = None, timeout_s: float = 90.0) -> float:
        """Start ``calico-node run`` and wait until it serves; gives the seconds that took. A running one is success.

        ``environment`` is added to the host's for this start only.

        :raises ToolFailed: it ended; ``stderr`` is the end of its log.
        :raises NotReady: it did not get ready in time; it was killed.
        """
        if self._find_node() is not None:
            return 0.0
        started = time.monotonic()
        self.socket.unlink(missing_ok=True)  # a killed node leaves its own behind
        offset = self.node_log.stat().st_size if self.node_log.exists() else 0
        argv = (*executable(NODE), "run")
        process = processes.spawn(
            NODE,
            argv,
            host=self.name,
            namespace=processes.require_namespace(self.namespace),
            environment=self.environment | dict(environment or {}),
            log_file=self.node_log,
        )
        try:
            self._record(process)
            self._await_ready(process, argv, offset, started + timeout_s)
        except BaseException:
            processes.kill(process)
            raise
        seconds = time.monotonic() - started
        log.info("lab.node_started", host=self.name, pid=process.pid, seconds=round(seconds, 3))
        return seconds

    def stop_node(self, *, timeout_s: float = 10.0) -> None:
        """SIGTERM, and SIGKILL after ``timeout_s``. Not running is success."""
        self._end_node(timeout_s)

    def kill_node(self) -> None:
        """SIGKILL, as a crash. Its BIRD lives on, as it would on a real host."""
        self._end_node(0.0)

    def calicoctl(
        self, *arguments: str, stdin: str = "", check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run the real ``calicoctl`` on this host. With ``check`` a failure raises ``ToolFailed``."""
        return self.run((*executable("calicoctl"), *arguments), stdin=stdin, check=check, timeout_s=timeout_s)

    def install_cni(self) -> None:
        """The CNI executables and a network configuration, in the host's own directories."""
        self.calicoctl(
            *("cni", "install"),
            *("--bin-dir", str(self.cni_bin_directory)),
            *("--conf-dir", str(self.cni_conf_directory)),
        )

    def run(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: str = "",
        check: bool = True,
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run any program in the host's namespace, with its environment. The file system is the machine's."""
        done = processes.run(
            argv,
            namespace=processes.require_namespace(self.namespace),
            environment=self.environment | dict(environment or {}),
            stdin=stdin,
            timeout_s=timeout_s,
        )
        if check and done.returncode:
            raise ToolFailed(tuple(argv), done.returncode, done.stderr or done.stdout)
        return done

    def _find_node(self) -> ProcessRecord | None:
        for process in reversed(self._journal.read().processes):
            if process.host == self.name and process.what == NODE and processes.is_running(process):
                return process
        return None

    def _record(self, process: ProcessRecord) -> None:
        def change(now: LabRecord) -> LabRecord:
            others = tuple(each for each in now.processes if (each.what, each.host) != (NODE, self.name))
            return msgspec.structs.replace(now, processes=(*others, process))

        self._journal.update(change)

    def _end_node(self, grace_s: float) -> None:
        process = self._find_node()
        if process is not None:
            processes.stop([process], grace_s=grace_s)

        def change(now: LabRecord) -> LabRecord:
            kept = tuple(each for each in now.processes if (each.what, each.host) != (NODE, self.name))
            return msgspec.structs.replace(now, processes=kept)

        self._journal.update(change)

    def _await_ready(self, process: ProcessRecord, argv: tuple[str, ...], offset: int, deadline: float) -> None:
        ready = READY_LINE.encode()
        while True:
            is_alive = processes.is_running(process)  # asked first: what it said before its end is in the log then
            with self.node_log.open("rb") as file:
                file.seek(offset)
                is_ready = ready in file.read()
            if is_ready and is_alive and self.is_node_ready:
                return
            if not is_alive:
                raise ToolFailed(argv, 1, f"on {self.name}, its log ends:\n{processes.tail(self.node_log, offset)}")
            if time.monotonic() > deadline:
                said = processes.tail(self.node_log, offset)
                raise NotReady(f"{NODE} on {self.name} did not start in time, its log ends:\n{said}")
            time.sleep(_POLL_S)


def executable(name: str) -> tuple[str, ...]:
    """How to start one of our programs: the script beside this interpreter, else the module by the interpreter."""
    script = Path(sys.executable).with_name(name)
    if script.exists():
        return (str(script),)
    module = _MODULES[name]
    if importlib.util.find_spec(module) is None:
        raise InvalidRequest("executable", f"{name} is not installed beside {sys.executable}")
    return (sys.executable, "-m", module)


def _is_setting(variable: str) -> bool:
    return variable.startswith(_FOREIGN_PREFIXES) or variable in _FOREIGN_NAMES

"""A file for each endpoint of this host whose policy is in the kernel: CNI plugins of the reference system wait for it.

``ORCHESTRATOR WORKLOAD ENDPOINT`` with each part escaped as in the path of a URL, in JSON what the reference system
writes. A file goes with its endpoint, and while the endpoint is down or failed. One thread, latest state wins: neither
the engine nor an attach waits for a disk. Source: felix specification 2.3, cni specification (``endpoint_status_dir``).
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from calico_core.log import get_logger
from calico_core.model.hoststate import HostWorkload
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.node.agent_state import AgentState
from calico_core.node.mailbox import LatestSlot

log = get_logger(__name__)

DIRECTORY = "endpoint-status"
_RETRY_S = 5.0
_GATHER_S = 0.05
"""An attach makes several states in a row: one look at all endpoints does for them."""
# what the reference system's language leaves as it is in a part of a path, beside letters, digits and "-_.~"
_PLAIN = "$&+=:@"


class EndpointFiles:
    """``put`` from the engine; everything else happens in the thread of its own."""

    def __init__(self, directory: Path, workload: Callable[[WorkloadEndpointKey], HostWorkload | None]) -> None:
        """``workload`` may be asked from any thread."""
        self._directory, self._workload = directory, workload
        self._slot: LatestSlot[AgentState] = LatestSlot()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="endpoint-files", daemon=True)
        self._written: dict[WorkloadEndpointKey, HostWorkload | None] | None = None
        """By what each file was made of; None: nothing is known of the directory."""
        self._failed: dict[WorkloadEndpointKey | None, str] = {}
        """Why the file of an endpoint is not as it should be; None: why none is."""

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def put(self, state: AgentState) -> None:
        """Before the first complete apply nothing is known of what an earlier life of the node wrote."""
        if state.is_applied:
            self._slot.put(state)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The files stay, as policy does."""
        self._stopping.set()
        self._slot.close()
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        state: AgentState | None = None
        wait_s: float | None = None
        while not self._stopping.is_set():
            state = self._slot.take(wait_s) or state
            if state is None or self._stopping.wait(_GATHER_S):
                continue
            state = self._slot.take(0) or state
            try:
                failed = self._align(state)
            except OSError as error:
                self._written = None
                failed = {None: _reason(error)}
            self._tell(failed)
            wait_s = _RETRY_S if failed else None

    def _align(self, state: AgentState) -> dict[WorkloadEndpointKey | None, str]:
        """Gives what failed: a file that cannot be (a name of too many letters) holds up no other."""
        up = {key: self._workload(key) for key, (status, _) in state.endpoints.items() if status == "up"}
        before = self._written
        if before is None:
            self._begin({name_of(key) for key in up})
            before = self._written = {}
        failed: dict[WorkloadEndpointKey | None, str] = {}
        for key in before.keys() - up.keys():
            try:
                (self._directory / name_of(key)).unlink(missing_ok=True)
                del before[key]
            except OSError as error:
                failed[key] = _reason(error)
        for key, workload in up.items():
            if key in before and before[key] is workload:
                continue
            try:
                self._write(name_of(key), content_of(workload))
                before[key] = workload
            except OSError as error:
                failed[key] = _reason(error)
        return failed

    def _tell(self, failed: dict[WorkloadEndpointKey | None, str]) -> None:
        """Of what has failed before, nothing."""
        new = defaultdict(list)
        for key, reason in failed.items():
            if self._failed.get(key) != reason:
                new[reason].append("" if key is None else name_of(key))
        for reason, names in new.items():
            directory = str(self._directory)
            log.warning(
                "endpoint_files.not_written", directory=directory, first=names[0], files=len(names), reason=reason
            )
        self._failed = failed

    def _begin(self, wanted: set[str]) -> None:
        """Remove what an earlier life of the node left, and what it was about to write."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for entry in os.scandir(self._directory):
            if entry.name not in wanted and entry.is_file(follow_symlinks=False):
                Path(entry.path).unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        """Whoever sees it sees all of it."""
        temporary = self._directory / f".{os.getpid()}.new"
        try:
            temporary.write_bytes(content)
            temporary.rename(self._directory / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def name_of(key: WorkloadEndpointKey) -> str:
    return " ".join(quote(part, safe=_PLAIN) for part in (key.orchestrator, key.workload, key.endpoint))


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def content_of(workload: HostWorkload | None) -> bytes:
    """None: it goes just now, which the next state says."""
    told: dict[str, object] = {}
    if workload is not None:
        told["ifaceName"] = workload.interface
        if workload.mac is not None:
            told["mac"] = str(workload.mac).replace("-", ":").lower()
        for version in (4, 6):
            nets = [str(net) for net in workload.nets if net.version == version]
            if nets:
                told[f"ipv{version}Nets"] = nets
    return json.dumps(told, separators=(",", ":")).encode()

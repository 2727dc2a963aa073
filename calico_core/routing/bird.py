"""Drives a BIRD 2 daemon: writes its configuration, starts or adopts it, reconfigures it without a restart.

The daemon outlives us, so that routes stay while the runtime is restarted or upgraded; the next runtime adopts it.
It runs in the network namespace of the thread that calls :meth:`BirdRouting.configure`. In the run directory:
``bird.conf`` (what the daemon was told last), ``bird.conf.good`` (the one before), ``bird.ctl``, ``bird.pid``,
``bird.log``. Source: node specification 2.4.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from calico_core.errors import ConfigRejected, DaemonDown, InvalidRequest, RoutingError, ToolFailed
from calico_core.interfaces.routing import Peer, PeerStatus, Routing, RoutingOptions, RoutingState, RoutingStatus
from calico_core.log import get_logger
from calico_core.routing.bird_config import record_key, render, sessions
from calico_core.routing.bird_control import BirdControl, ProtocolRow, rejection

if TYPE_CHECKING:
    from collections.abc import Mapping

log = get_logger(__name__)

_SOCKET_PATH_LIMIT = 107  # unix(7): sun_path, and its closing zero
_TOOL_LIMIT_S = 10.0
_START_LIMIT_S = 5.0
_STOP_LIMIT_S = 5.0
_POLL_S = 0.02
_CONFIG_MODE = 0o640
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_IN_QUOTES = re.compile(r"[\w./+@%=,~ -]+")  # BIRD has no escape inside strings
_NOT_INSTALLED = "the program bird is not installed; install BIRD 2 (Debian: bird2) or choose the routing driver none"


class BirdRouting(Routing):
    """One host's daemon. ``configure`` and ``close`` belong to one thread."""

    def __init__(self, run_directory: Path, *, search_path: str | None = None) -> None:
        """``search_path``: where the program is looked for; by default PATH and the system's directories."""
        self._directory = run_directory
        self._config = run_directory / "bird.conf"
        self._former = run_directory / "bird.conf.good"
        self._socket = run_directory / "bird.ctl"
        self._pid_file = run_directory / "bird.pid"
        self._log_file = run_directory / "bird.log"
        self._search_path = search_path or f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"
        self._control = BirdControl(self._socket)
        # replaced whole, never changed: status() reads them from other threads
        self._sessions: Mapping[str, Peer] = MappingProxyType({})
        self._own_address_peers: tuple[Peer, ...] = ()
        self._rejected = ""
        self._is_loaded = False

    @classmethod
    def open(cls, options: RoutingOptions) -> BirdRouting:
        """Touches nothing yet. Raises ``InvalidRequest`` for a directory no socket can lie in."""
        directory = Path(options.run_directory).absolute()
        if len(os.fsencode(directory / "bird.ctl")) > _SOCKET_PATH_LIMIT or not _IN_QUOTES.fullmatch(str(directory)):
            reason = (
                f"{directory} must be shorter than {_SOCKET_PATH_LIMIT - 8} bytes without quotes and control characters"
            )
            raise InvalidRequest("run_directory", reason)
        return cls(directory)

    def configure(self, state: RoutingState) -> None:
        text = render(state, log_file=str(self._log_file))
        had_config = self._config.exists()
        try:
            is_changed = self._install(text)
            self._follow(is_changed=is_changed, recover=had_config)
        except ConfigRejected as error:
            self._rejected = str(error)
            if had_config:
                self._follow(is_changed=False, recover=True)
            raise
        self._sessions = MappingProxyType(sessions(state))
        self._own_address_peers = tuple(peer for peer in state.peers if peer.ip in {state.ipv4, state.ipv6})
        self._rejected = ""

    def status(self) -> RoutingStatus:
        try:
            rows = {row.name: row for row in self._control.protocols()}
        except RoutingError:
            return RoutingStatus(driver="bird", is_running=False, rejected=self._rejected)
        peers = [_session_status(peer, rows.get(name)) for name, peer in self._sessions.items()]
        peers += [
            PeerStatus(ip=peer.ip, origin=peer.origin, state="Idle (this node)") for peer in self._own_address_peers
        ]
        return RoutingStatus(driver="bird", is_running=True, peers=tuple(peers), rejected=self._rejected)

    def close(self, *, stop_daemon: bool) -> None:
        """Stopping keeps the kernel's routes, and peers keep theirs for the restart time (RFC 4724): what
        comes next is a new start or an upgrade. Already gone is success."""
        if stop_daemon:
            self._stop()

    # --- the file ------------------------------------------------------------------------------------------------

    def _install(self, text: str) -> bool:
        """Put the text in place if it is new and BIRD accepts it; whether it was new."""
        try:
            if self._config.exists() and self._config.read_bytes() == text.encode():
                return False
            self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            candidate = self._config.with_suffix(".conf.new")
            _write(candidate, text)
            try:
                self._check(candidate, text)
            except BaseException:
                candidate.unlink(missing_ok=True)
                raise
            self._keep_former()
            candidate.replace(self._config)
            _sync_directory(self._directory)
        except OSError as error:
            raise RoutingError(f"cannot write {self._config}: {error.strerror or error}") from error
        self._is_loaded = False
        return True

    def _program(self) -> str:
        found = shutil.which("bird", path=self._search_path)
        if found is None:
            raise DaemonDown(str(self._socket), _NOT_INSTALLED)
        return found

    def _check(self, candidate: Path, text: str) -> None:
        argv = (self._program(), "-p", "-c", str(candidate))
        ended = _run(argv)
        if ended.returncode == 0:
            return
        refusal = rejection(ended.stderr)
        if not refusal.line:
            raise ToolFailed(argv, ended.returncode, ended.stderr)
        raise _with_key(refusal, text)

    def _keep_former(self) -> None:
        if self._config.exists():
            spare = self._former.with_suffix(".good.new")
            spare.unlink(missing_ok=True)
            os.link(self._config, spare)
            spare.replace(self._former)

    def _restore_former(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._former.replace(self._config)

    # --- the daemon ----------------------------------------------------------------------------------------------

    def _follow(self, *, is_changed: bool, recover: bool) -> None:
        """Have a daemon run with the file in place."""
        pid = self._find_daemon()
        if pid is None:
            self._start(recover=recover)
        elif not self._is_loaded:
            self._reload(is_changed=is_changed)
            log.debug("bird.reconfigured", pid=pid)
        self._is_loaded = True

    def _reload(self, *, is_changed: bool) -> None:
        try:
            self._control.configure()
        except ConfigRejected:
            if is_changed:
                self._restore_former()
            raise

    def _find_daemon(self) -> int | None:
        """Process id of our daemon, None when none runs. Raises ``DaemonDown`` for one we cannot use."""
        pid = self._own_pid()
        if pid is None:
            with contextlib.suppress(DaemonDown):
                self._control.status()
                raise RoutingError(f"{self._socket} belongs to a daemon that is not in {self._pid_file}; stop it first")
            return None
        self._control.status()
        if _network_namespace(f"/proc/{pid}") != _network_namespace("/proc/thread-self"):
            raise DaemonDown(str(self._socket), f"process {pid} runs in another network namespace; stop it first")
        return pid

    def _own_pid(self) -> int | None:
        """The process of the pid file, if it still is a BIRD with our configuration file."""
        try:
            pid = int(self._pid_file.read_text().strip())
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        is_ours = Path(os.fsdecode(argv[0])).name == "bird" and os.fsencode(self._config) in argv
        return pid if is_ours else None

    def _start(self, *, recover: bool) -> None:
        """BIRD detaches itself (its own session, a child of init), so that it outlives us.

        ``recover``: it ran before; keep the kernel's routes until peers have sent theirs again (RFC 4724). Not so at
        the first start, where one dead peer would hold back all routes.
        """
        argv = [self._program(), "-c", str(self._config), "-s", str(self._socket), "-P", str(self._pid_file)]
        ended = _run((*argv, "-R") if recover else tuple(argv))
        if ended.returncode != 0:
            raise DaemonDown(str(self._socket), f"bird did not start: {ended.stderr.strip()}")
        deadline = time.monotonic() + _START_LIMIT_S
        while True:
            try:
                status = self._control.status()
                break
            except DaemonDown:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)
        log.info("bird.started", pid=self._own_pid(), version=status.version, recover=recover)

    def _stop(self) -> None:
        """Killed: SIGTERM makes peers withdraw our routes at once, and so (2.0.12) does ``graceful restart`` with
        routes learned from the kernel. Nothing is lost: BIRD keeps no state of its own."""
        pid = self._own_pid()
        if pid is None:
            return
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if self._own_pid() != pid:
                return
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            if not _has_ended(handle):
                raise DaemonDown(str(self._socket), f"process {pid} does not end")
        finally:
            os.close(handle)
        log.info("bird.stopped", pid=pid)


def _session_status(peer: Peer, row: ProtocolRow | None) -> PeerStatus:
    if row is None:
        return PeerStatus(ip=peer.ip, origin=peer.origin, state="Not configured")
    state, _, info = row.info.partition(" ")
    return PeerStatus(
        ip=peer.ip, origin=peer.origin, state=state or row.state.capitalize(), since=row.since, info=info.strip()
    )


def _with_key(refusal: ConfigRejected, text: str) -> ConfigRejected:
    lines = text.splitlines()
    key = record_key(lines[refusal.line - 1]) if refusal.line <= len(lines) else ""
    return ConfigRejected(refusal.line, f"{refusal.reason}, from {key}") if key else refusal


def _run(argv: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run to its end (a starting BIRD ends at once, its child goes on), without our environment's secrets."""
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=_TOOL_LIMIT_S, cwd="/", env={"PATH": _SYSTEM_PATH},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(argv, -1, f"not done after {_TOOL_LIMIT_S:g} s") from error
    except OSError as error:
        raise ToolFailed(argv, -1, error.strerror or str(error)) from error


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _CONFIG_MODE)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _network_namespace(process: str) -> tuple[int, int]:
    try:
        found = Path(process, "ns/net").stat()
    except OSError as error:
        raise DaemonDown(process, f"its network namespace cannot be seen: {error.strerror}") from error
    return found.st_dev, found.st_ino


def _has_ended(pidfd: int) -> bool:
    """Whether the process ended within the limit (a pidfd becomes readable then, pidfd_open(2))."""
    waiter = select.poll()
    waiter.register(pidfd, select.POLLIN)
    return bool(waiter.poll(_STOP_LIMIT_S * 1000))

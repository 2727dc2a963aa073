"""Processes of a laboratory: started in a namespace, told by pid and start time, ended through a pidfd.

Children are started with posix_spawn(3), not kept as objects: the process that ends them is often another one than
the one that started them.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from calico_core.errors import NamespaceGone, ToolFailed
from calico_core.lab.record import ProcessRecord
from calico_core.log import get_logger

log = get_logger(__name__)

_TAIL_BYTES = 4096
_KILL_WAIT_S = 5.0
_STATE, _STARTED = 0, 19  # fields of /proc/PID/stat behind the name, proc(5)


def entering(namespace: Path, argv: Sequence[str]) -> tuple[str, ...]:
    """The command line that runs ``argv`` inside the namespace. It changes programs, not processes: same pid."""
    tool = shutil.which("nsenter") or "/usr/bin/nsenter"
    return (tool, f"--net={namespace}", "--", *argv)


def spawn(
    what: str,
    argv: Sequence[str],
    *,
    host: str,
    namespace: Path,
    environment: Mapping[str, str],
    log_file: Path,
) -> ProcessRecord:
    """Start a daemon in a session of its own, its output appended to ``log_file``."""
    line = entering(namespace, argv)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        pid = os.posix_spawn(
            line[0],
            line,
            dict(environment),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log_file), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGINT),  # Python ignores SIGPIPE, a child would inherit that
        )
    except OSError as error:
        raise ToolFailed(line, 127, error.strerror or str(error)) from error
    return ProcessRecord(what=what, host=host, pid=pid, started=_started(pid) or 0)


def run(
    argv: Sequence[str],
    *,
    namespace: Path,
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
    timeout_s: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run a program in the namespace and take its output. Its status is the caller's to judge.

    :raises ToolFailed: it did not end in time (code -9) or could not be started (127).
    """
    line = entering(namespace, argv)
    try:
        return subprocess.run(
            line, input=stdin, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        said = error.stderr or b""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise ToolFailed(tuple(argv), -signal.SIGKILL, f"no end after {timeout_s:g} s. {text}") from error
    except OSError as error:
        raise ToolFailed(tuple(argv), 127, error.strerror or str(error)) from error


def is_running(process: ProcessRecord) -> bool:
    """Whether that very process lives. A child of ours that ended is reaped here."""
    fields = _stat(process.pid)
    if fields is None or int(fields[_STARTED]) != process.started:
        return False
    if fields[_STATE] != "Z":
        return True
    _reap(process.pid)
    return False


def stop(processes: Iterable[ProcessRecord], *, grace_s: float) -> None:
    """SIGTERM to all, wait up to ``grace_s`` for all together, SIGKILL to the rest. Gone ones are fine."""
    opened: dict[int, ProcessRecord] = {}
    try:
        for process in processes:
            descriptor = _open(process)
            if descriptor is not None:
                opened[descriptor] = process
        _signal(opened, signal.SIGTERM if grace_s > 0 else signal.SIGKILL)
        left = _await_end(opened, grace_s if grace_s > 0 else _KILL_WAIT_S)
        if left and grace_s > 0:
            log.warning("lab.killed", processes=[f"{opened[each].what}/{opened[each].pid}" for each in left])
            _signal(left, signal.SIGKILL)
            _await_end(left, _KILL_WAIT_S)
    finally:
        for descriptor, process in opened.items():
            os.close(descriptor)
            _reap(process.pid)


def kill(process: ProcessRecord) -> None:
    """SIGKILL and wait for the end."""
    stop([process], grace_s=0)


def inside(namespaces: Iterable[Path]) -> list[ProcessRecord]:
    """Every process that stands in one of the namespaces, but never this one. A namespace that is gone has none."""
    identities: set[tuple[int, int]] = set()
    for path in namespaces:
        with contextlib.suppress(OSError):
            found = path.stat()
            identities.add((found.st_dev, found.st_ino))
    processes: list[ProcessRecord] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            found = (entry / "ns/net").stat()
            if (found.st_dev, found.st_ino) in identities:
                name = (entry / "comm").read_text().strip()
                started = _started(int(entry.name))
                if started is not None:
                    processes.append(ProcessRecord(what=name, host="", pid=int(entry.name), started=started))
    return processes


def tail(log_file: Path, start: int = 0) -> str:
    """The end of a log, at most 4 KiB of what was written from ``start`` on."""
    try:
        with log_file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def require_namespace(path: Path) -> Path:
    """The path, if something is bound there: nsenter's own words do not say which laboratory went."""
    if not path.exists():
        raise NamespaceGone(str(path), "it is gone; was the laboratory taken down?")
    return path


def _open(process: ProcessRecord) -> int | None:
    """A pidfd, or None when that process is gone. Checked after opening: from then on the pid cannot change hands."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if _started(process.pid) == process.started:
        return descriptor
    os.close(descriptor)
    return None


def _signal(descriptors: Iterable[int], number: signal.Signals) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)


def _await_end(descriptors: Iterable[int], within_s: float) -> list[int]:
    """Those still running after the time. A pidfd becomes readable when its process ends."""
    waiting = set(descriptors)
    poller = select.poll()
    for descriptor in waiting:
        poller.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + within_s
    while waiting:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        for descriptor, _ in poller.poll(left_s * 1000):
            poller.unregister(descriptor)
            waiting.discard(descriptor)
    return sorted(waiting)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _started(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[_STARTED]) if fields else None


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the name, in parentheses, may hold anything
    return text.rpartition(")")[2].split()

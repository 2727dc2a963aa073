"""The programs: ``iptables-save`` and ``-restore`` for both families, ``ipset``. The only place that starts them.

``iptables`` exists in two backends that do not see each other's rules. Ours go where the host's own go: to the one
that the command ``iptables`` stands for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from calico_core.dataplane.linux.netns import run_in
from calico_core.errors import ToolFailed
from calico_core.log import get_logger
from calico_core.stopwatch import Timing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Literal

    Backend = Literal["nft", "legacy"]

_TIMEOUT_S = 60.0
_NOEXEC_SEAL = 0x0008
"""MFD_NOEXEC_SEAL: some hosts refuse files in memory that could be run (vm.memfd_noexec)."""
#: How long iptables waits for another program's lock (the legacy backend has one).
_LOCK_WAIT_S = 10
_BACKENDS: tuple[Backend, ...] = ("nft", "legacy")
#: Of the thread's own network namespace.
_LEGACY_TABLES = ("/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names")
_COMMANDS = {4: "iptables", 6: "ip6tables"}
#: What a shell answers for a command that is not there.
_NOT_FOUND, _TIMED_OUT = 127, 124

log = get_logger(__name__)


class Tools:
    """Runs in one network namespace; ``namespace_fd`` None: where the process stands. One thread at a time."""

    def __init__(self, namespace_fd: int | None = None, backend: Backend | None = None) -> None:
        """:raises ToolFailed: one of the programs is missing."""
        self._namespace_fd = namespace_fd
        self.counts: Counter[str] = Counter()
        """Calls, errors and lines, by their names in metrics. Written by one thread, read by any."""
        self.execution = Timing()
        self.backend: Backend = backend or self._find_backend()
        self._save: dict[int, str] = {}
        self._restore: dict[int, str] = {}
        for family, command in _COMMANDS.items():
            self._save[family] = _program(command, self.backend, "save")
            self._restore[family] = _program(command, self.backend, "restore")
        self._ipset = _path("ipset")
        log.debug("iptables.chosen", backend=self.backend)

    def save(self, family: int, *, with_counters: bool = False) -> str:
        """All tables of the family that exist."""
        return self._counted("iptables_save", (self._save[family], *(["-c"] if with_counters else [])))

    def restore(self, family: int, script: str) -> None:
        """One transaction a table; chains the script does not declare are left alone.

        :raises ToolFailed: a table was refused; those before it in the script are done.
        """
        self.counts["iptables_lines_executed"] += script.count("\n")
        self._counted("iptables_restore", (self._restore[family], "--noflush", "--wait", str(_LOCK_WAIT_S)), script)

    def save_sets(self) -> str:
        return self._counted("ipset", (self._ipset, "save"))

    def restore_sets(self, script: str) -> None:
        """:raises ToolFailed: lines before the refused one are done."""
        self.counts["ipset_lines_executed"] += script.count("\n")
        self._counted("ipset", (self._ipset, "restore", "-exist"), script)

    def destroy_sets(self, names: Iterable[str]) -> None:
        """:raises ToolFailed: one is still in use; those before it are gone."""
        self.restore_sets("".join(f"destroy {name}\n" for name in names))

    def _find_backend(self) -> Backend:
        return "legacy" if "legacy" in self._run((_path("iptables"), "--version")) else "nft"

    def _counted(self, what: str, argv: tuple[str, ...], script: str | None = None) -> str:
        self.counts[f"{what}_calls"] += 1
        try:
            return self._run(argv, script)
        except ToolFailed:
            self.counts[f"{what}_errors"] += 1
            raise

    def _run(self, argv: tuple[str, ...], script: str | None = None) -> str:
        descriptors: tuple[int, ...] = ()
        command = argv
        if self._namespace_fd is not None:
            descriptors = (self._namespace_fd,)
            command = ("nsenter", f"--net=/proc/self/fd/{self._namespace_fd}", *argv)
        with self.execution.measure(), contextlib.ExitStack() as files:
            try:
                given, output, complaints = (files.enter_context(_memory(text)) for text in (script or "", "", ""))
                process = subprocess.Popen(command, stdin=given, stdout=output, stderr=complaints, pass_fds=descriptors)
            except OSError as error:
                raise ToolFailed(argv, _NOT_FOUND, str(error)) from error
            try:
                code = _await_end(process)
            except subprocess.TimeoutExpired as error:
                raise ToolFailed(argv, _TIMED_OUT, f"no result after {_TIMEOUT_S:g} s") from error
            if code != 0:
                raise ToolFailed(argv, code, _content(complaints))
            return _content(output)


@contextlib.contextmanager
def _memory(content: str) -> Iterator[int]:
    """A file in memory, at its beginning: unlike a pipe it asks nobody to read while the program runs."""
    try:
        descriptor = os.memfd_create("iptables", os.MFD_CLOEXEC | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.memfd_create("iptables")  # a kernel before 6.3
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content.encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, encoding="utf-8", errors="replace", closefd=False) as file:
        return file.read()


def _await_end(process: subprocess.Popen[bytes]) -> int:
    """Its exit code, as soon as there is one. ``wait`` with a time limit looks only now and then, and these programs
    end some milliseconds after their work, when the kernel has freed what they removed.

    :raises subprocess.TimeoutExpired: it was killed.
    """
    try:
        _await_exit(process.pid)
        return process.wait(timeout=0)
    except OSError:  # a kernel before 5.3
        return process.wait(_TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()


def _await_exit(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        exits = select.poll()
        exits.register(descriptor, select.POLLIN)
        exits.poll(_TIMEOUT_S * 1000)
    finally:
        os.close(descriptor)


def is_legacy_used(namespace_fd: int | None = None) -> bool:
    """Whether the namespace has tables of the legacy backend; looking into one that is not there would make it."""
    return run_in(namespace_fd, lambda: any(map(_has_content, _LEGACY_TABLES)))


def available_tools(namespace_fd: int | None = None) -> list[Tools]:
    """One for each backend the host has."""
    found: list[Tools] = []
    for backend in _BACKENDS:
        try:
            found.append(Tools(namespace_fd, backend))
        except ToolFailed as error:
            log.debug("iptables.backend_missing", backend=backend, error=str(error))
    return found


def _has_content(path: str) -> bool:
    try:
        return bool(Path(path).read_text(encoding="ascii").strip())
    except OSError:
        return False


def _program(command: str, backend: Backend, verb: str) -> str:
    """``iptables-nft-save``; the plain name where a host has but one backend."""
    return shutil.which(f"{command}-{backend}-{verb}") or _path(f"{command}-{verb}")


def _path(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise ToolFailed((program,), _NOT_FOUND, "it is not installed")
    return found

"""Network namespaces: open, enter, create, delete. The only place of the system that calls ``setns``.

A namespace belongs to a thread, so work inside another one runs in a worker thread of a small pool: it enters,
runs one function and returns to the process's own namespace. A worker that cannot return ends. Nothing here forks:
the process has gRPC threads, and children would inherit a switched namespace.

Python 3.11 has no ``os.setns``; libc is called through ctypes (setns(2), unshare(2), mount(2)).
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import errno
import fcntl
import os
import queue
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from calico_core.errors import InvalidRequest, KernelRefused, NamespaceGone
from calico_core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000
MNT_DETACH = 2

#: Where named namespaces are bound, as iproute2 does (``ip netns`` sees ours).
NAMED = Path("/run/netns")
#: The main thread's namespace, whichever thread asks.
OWN_NAMESPACE = "/proc/self/ns/net"
THIS_THREAD = "/proc/thread-self/ns/net"

_IDLE_WORKERS = 4
_RUN_TIMEOUT_S = 30.0

_libc = ctypes.CDLL(None, use_errno=True)
log = get_logger(__name__)


def open_namespace(path: str) -> int:
    """A descriptor of the network namespace bound at ``path``. The caller closes it.

    :raises NamespaceGone: nothing is there, or it is not a network namespace.
    """
    try:
        # O_NONBLOCK: a FIFO given by mistake must not block us
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise NamespaceGone(path, reason) from error
    try:
        kind = fcntl.ioctl(descriptor, NS_GET_NSTYPE)
    except OSError as error:
        os.close(descriptor)
        raise NamespaceGone(path, "not a namespace") from error
    if kind != CLONE_NEWNET:
        os.close(descriptor)
        raise NamespaceGone(path, "a namespace of another kind than network")
    return descriptor


def same_namespace(first_fd: int, second_fd: int) -> bool:
    """Whether two descriptors stand for one namespace (ioctl_nsfs(2): device and inode identify it)."""
    return _identity(first_fd) == _identity(second_fd)


def is_own_namespace(namespace_fd: int) -> bool:
    """Whether it is the process's own (its main thread's)."""
    return _identity(namespace_fd) == _identity(OWN_NAMESPACE)


def run_in(namespace_fd: int | None, function: Callable[[], T], *, timeout_s: float = _RUN_TIMEOUT_S) -> T:
    """The result of ``function``, run by a thread that stands in the namespace; its exception is raised here.

    ``None`` runs it in this thread, where it is. Context variables follow. May be nested. The function must not
    start processes.

    :raises NamespaceGone: the descriptor cannot be entered.
    :raises KernelRefused: no result within ``timeout_s``; the function goes on in its thread.
    """
    if namespace_fd is None:
        return function()
    job = _Job(namespace_fd, contextvars.copy_context(), function)
    _pool.submit(job)
    if not job.done.acquire(timeout=timeout_s):
        raise KernelRefused("run in network namespace", errno.ETIMEDOUT, f"no result after {timeout_s:g} s")
    if job.error is not None:
        try:
            raise job.error
        finally:
            job.error = None  # the traceback refers to this frame: break the cycle
    result: T = job.result
    return result


def socket_in(namespace_fd: int | None, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of the namespace. It stays bound to it, whichever thread uses it later."""
    return run_in(namespace_fd, lambda: socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol))


def create_namespace(name: str) -> Path:
    """Make a named network namespace as ``ip netns add`` does; gives the path it is bound at.

    :raises KernelRefused: EEXIST when the name is taken.
    """
    path = _named(name)
    _prepare_named()
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except OSError as error:
        raise KernelRefused(f"create network namespace {name}", error.errno or errno.EIO) from error

    failure: list[OSError] = []

    def unshare_and_bind() -> None:
        try:
            _call("unshare", CLONE_NEWNET)
            _call("mount", THIS_THREAD.encode(), os.fsencode(path), b"none", MS_BIND, None)
        except OSError as error:
            failure.append(error)

    # a thread of its own: it ends in the new namespace and never comes back
    thread = threading.Thread(target=unshare_and_bind, name="netns-create")
    thread.start()
    thread.join()
    if failure:
        path.unlink(missing_ok=True)
        raise KernelRefused(f"create network namespace {name}", failure[0].errno or errno.EIO) from failure[0]
    return path


def delete_namespace(name: str) -> None:
    """Unbind a named namespace; it ends with its last process and socket. Already gone is success."""
    path = _named(name)
    # EINVAL: a plain file, left by an interrupted creation
    with contextlib.suppress(FileNotFoundError):
        try:
            _call("umount2", os.fsencode(path), MNT_DETACH)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise KernelRefused(f"delete network namespace {name}", error.errno or errno.EIO) from error
    path.unlink(missing_ok=True)


def _identity(namespace: int | str) -> tuple[int, int]:
    try:
        found = os.stat(namespace)  # noqa: PTH116 - a descriptor
    except OSError as error:
        raise NamespaceGone(f"descriptor {namespace}", error.strerror or str(error)) from error
    return found.st_dev, found.st_ino


def _named(name: str) -> Path:
    if not name or "/" in name or name in {".", ".."} or "\0" in name:
        raise InvalidRequest("namespace", f"{name!r} is not a file name")
    return NAMED / name


def _prepare_named() -> None:
    """Make the folder a shared mount of its own, so that deletions reach other mount namespaces (ip-netns(8))."""
    NAMED.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder = os.fsencode(NAMED)
    try:
        _call("mount", b"", folder, b"none", MS_SHARED | MS_REC, None)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise KernelRefused(f"share {NAMED}", error.errno or errno.EIO) from error
        try:
            _call("mount", folder, folder, b"none", MS_BIND | MS_REC, None)
            _call("mount", b"", folder, b"none", MS_SHARED | MS_REC, None)
        except OSError as second:
            raise KernelRefused(f"share {NAMED}", second.errno or errno.EIO) from second


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class _Job:
    """One function to run; ``done`` is a lock released when ``result`` or ``error`` is set."""

    __slots__ = ("context", "done", "error", "function", "namespace_fd", "result")

    def __init__(self, namespace_fd: int, context: contextvars.Context, function: Callable[[], Any]) -> None:
        self.namespace_fd = namespace_fd
        self.context = context
        self.function = function
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()


class _Worker(threading.Thread):
    """Takes one job at a time. Its home is the process's own namespace, whoever started it."""

    def __init__(self, pool: _WorkerPool) -> None:
        super().__init__(name="netns", daemon=True)
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._pool = pool

    def run(self) -> None:
        home = os.open(OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while self._serve(self.jobs.get(), home):
                pass
        finally:
            os.close(home)

    def _serve(self, job: _Job, home: int) -> bool:
        """Run a job; false when this thread must end."""
        is_home = True
        try:
            try:
                _call("setns", job.namespace_fd, CLONE_NEWNET)
            except OSError as error:
                raise NamespaceGone(f"descriptor {job.namespace_fd}", error.strerror or str(error)) from error
            is_home = False
            job.result = job.context.run(job.function)
        except BaseException as error:
            job.error = error
        if not is_home:
            try:
                _call("setns", home, CLONE_NEWNET)
                is_home = True
            except OSError as error:
                log.exception("netns.worker_lost", errno=error.errno)
        # idle before the asker wakes, so that its next call finds this worker
        stays = is_home and self._pool.give_back(self)
        job.done.release()
        return stays


class _WorkerPool:
    """Idle workers, last used first. Grows as needed (nested calls never wait for a free worker)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []

    def submit(self, job: _Job) -> None:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker(self)
            worker.start()
        worker.jobs.put(job)

    def give_back(self, worker: _Worker) -> bool:
        """Whether the worker shall stay."""
        with self._lock:
            if len(self._idle) >= _IDLE_WORKERS:
                return False
            self._idle.append(worker)
            return True


_pool = _WorkerPool()

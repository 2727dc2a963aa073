"""One call at a time for one attachment: a DEL waits for the ADD that it is to undo, wherever each of them runs.

Two calls may meet in the node, or one of them in a process of its own, because the node was down when it began. So the
lock is the kernel's, on one byte of a file: which one follows from the attachment. It goes with whoever holds it, the
file stays empty, and different attachments do not wait for each other. Those that wait have no order: an ADD whose
runtime gave up and sent DEL may come after that DEL, and so does nothing.

Source: fcntl(2), open file description locks; cni specification 5.3 and 6.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from calico_cni.environment import Invocation
from calico_cni.file_lock import MODE
from calico_core.errors import NotReady
from calico_core.log import get_logger
from calico_core.stopwatch import lap

TIMEOUTS_S = {"ADD": 30.0, "DEL": 15.0}
"""By command. A DEL has its own work to do yet before the shim asks elsewhere."""
_PAUSE_S = 0.01
_FLOCK = "hhqqi"  # type, whence, start, length, process (0)

log = get_logger(__name__)


class AttachmentLocks:
    """Of one host. Any thread, and any process. A directory that cannot be written has no locks, and neither has one on
    a file system that knows none: calls go on without."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "attachments.lock"
        self._is_lack_told = False
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def hold(
        self,
        program: str,
        network: str,
        invocation: Invocation,
        has_left: Callable[[], bool] = lambda: False,
        *,
        pod: tuple[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[None]:
        """For an ADD or a DEL of ``program``, whose plugins may have another program of ours do a part of the work.
        ``has_left``: whether the caller did, while the call waited. ``pod``: where the attachment is named after it,
        and the call does not take :meth:`hold_pod` later. ``timeout_s``: another than the command has.

        :raises NotReady: an earlier one does not end, or nobody is there any more; nothing was done then.
        """
        whole = f"{program}:{network}:{invocation.container_id}:{invocation.interface}"
        # one after the other, always in this order: nobody waits in a ring
        names = [whole] if pod is None else [whole, _name_of(program, pod)]
        with self._held(names, TIMEOUTS_S[invocation.command] if timeout_s is None else timeout_s) as has_waited:
            if has_waited and has_left():
                raise NotReady(f"the caller of {invocation.command} for {whole} left while an earlier call ran")
            yield

    @contextlib.contextmanager
    def hold_pod(
        self, program: str, pod: tuple[str, str], invocation: Invocation, has_left: Callable[[], bool]
    ) -> Iterator[None]:
        """Record and interface of an attachment that is named after its pod are those of every container of the pod.
        For the part of an ADD that makes them, inside :meth:`hold`: what it asks others for before may take long, and
        the DEL of the container before must not wait for that. By then the next container may stand, so nobody goes on
        here whose caller has left, waited or not.

        :raises NotReady: as :meth:`hold`.
        """
        name = _name_of(program, pod)
        with self._held([name], TIMEOUTS_S[invocation.command]):
            if has_left():
                raise NotReady(f"the caller of {invocation.command} for {name} left before its turn")
            yield

    @contextlib.contextmanager
    def _held(self, names: list[str], timeout_s: float) -> Iterator[bool]:
        """Whether it had to wait."""
        try:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
        except OSError as error:
            self._tell_lack(error)
            yield False
            return
        try:
            needed = list(names)
            while needed and self._try(descriptor, needed[0]):
                del needed[0]
            if needed:
                log.info("attachment.busy", attachment=needed[0])
                self._wait(descriptor, needed, timeout_s)
                lap("attachment")
            yield bool(needed)
        finally:
            os.close(descriptor)

    def _wait(self, descriptor: int, names: list[str], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for name in names:
            while not self._try(descriptor, name):
                if time.monotonic() >= deadline:
                    raise NotReady(f"an earlier call for {name} has not ended within {timeout_s:g} s")
                time.sleep(_PAUSE_S)

    def _try(self, descriptor: int, attachment: str) -> bool:
        """False while another call holds it."""
        number = hashlib.sha1(attachment.encode(), usedforsecurity=False).digest()[:8]
        start = int.from_bytes(number, "big") >> 1  # an offset is signed
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0))
        except BlockingIOError:
            return False
        except OSError as error:
            self._tell_lack(error)
        return True

    def _tell_lack(self, error: OSError) -> None:
        if not self._is_lack_told:  # once is enough
            self._is_lack_told = True
            log.warning("attachment.no_locks", file=str(self._file), reason=error.strerror)


def _name_of(program: str, pod: tuple[str, str]) -> str:
    """Whatever the container's interface is called: networks that share one call it differently."""
    return f"{program}:{'/'.join(pod)}"

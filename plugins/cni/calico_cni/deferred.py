"""Detaches that the datastore could not be told of yet, one small file each.

A container that is gone must not wait for a datastore that is away: the interface goes at once, the rest is written
down here and done by the node when the datastore is back. Doing it late is safe, because record and addresses are
released only if they still belong to the same container. Source: cni specification 6, DEL.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from calico_cni.environment import Invocation
from calico_cni.kubernetes import PodName
from calico_core.errors import CalicoError, DatastoreError, NotReady, StoreNotReady
from calico_core.files import replace_file
from calico_core.log import get_logger

LIMIT = 10_000
_SUFFIX = ".json"

log = get_logger(__name__)


class DeferredDetach(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to detach, and nothing secret. ``created``: seconds since the epoch."""

    program: str
    network: str
    container_id: str
    interface: str
    arguments: dict[str, str] = {}
    is_of_kubernetes: bool = False
    may_share_interface: bool = False
    is_policy_only: bool = False
    created: float = 0.0

    @classmethod
    def of(
        cls,
        program: str,
        network: str,
        invocation: Invocation,
        *,
        is_of_kubernetes: bool = False,
        may_share_interface: bool = False,
        is_policy_only: bool = False,
    ) -> DeferredDetach:
        pod = {name: value for name, value in invocation.arguments.items() if name.startswith("K8S_POD_")}
        return cls(
            program=program,
            network=network,
            container_id=invocation.container_id,
            interface=invocation.interface,
            arguments=pod,
            is_of_kubernetes=is_of_kubernetes,
            may_share_interface=may_share_interface,
            is_policy_only=is_policy_only,
            created=round(time.time(), 3),
        )

    @property
    def pod(self) -> PodName | None:
        """The one that the endpoint is named after."""
        return PodName.of(self.arguments) if self.is_of_kubernetes else None

    @property
    def invocation(self) -> Invocation:
        return Invocation("DEL", self.container_id, "", self.interface, self.arguments)

    @property
    def file_name(self) -> str:
        """The same for every detach of one attachment."""
        whole = f"{self.program}:{self.network}:{self.container_id}:{self.interface}"  # none of them holds a colon
        return hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest() + _SUFFIX


class DeferredDetaches:
    """The folder of one host. Any thread, and beside the processes that run while the node is down."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._replaying = threading.Lock()

    def put(self, detach: DeferredDetach) -> None:
        """Durable when it returns.

        :raises NotReady: there are too many, or the folder cannot be written.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if len(self._names()) >= LIMIT:
                raise NotReady(f"{LIMIT} detaches wait for the datastore in {self._directory}")
            self._write(self._directory / detach.file_name, msgspec.json.encode(detach))
        except OSError as error:
            raise NotReady(f"a detach cannot be put off in {self._directory}: {error.strerror}") from error
        log.warning("detach.deferred", network=detach.network, container=detach.container_id)

    @contextlib.contextmanager
    def cancelled(self, program: str, network: str, invocation: Invocation) -> Iterator[None]:
        """The attachment is wanted again: what was put off is forgotten, unless the body fails. One that is being
        replayed is waited for."""
        path = self._directory / DeferredDetach.of(program, network, invocation).file_name
        forgotten = self._take(path) if path.exists() else None
        try:
            yield
        except BaseException:
            if forgotten is not None:
                self._put_back(path, forgotten)
            raise

    def all(self) -> tuple[DeferredDetach, ...]:
        """Oldest first. A file that is not ours to read is left alone and logged."""
        found = []
        for name in self._names():
            try:
                found.append(msgspec.json.decode((self._directory / name).read_bytes(), type=DeferredDetach))
            except FileNotFoundError:
                continue
            except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
                log.warning("detach.unreadable", file=name, reason=str(error))
        return tuple(sorted(found, key=lambda each: each.created))

    def replay(
        self,
        run: Callable[[DeferredDetach], None],
        turn: Callable[[DeferredDetach], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
    ) -> int:
        """Do what waits; how many are done. Stops at the first that the datastore refuses again. Each runs inside its
        ``turn``; one that has none, because a call that runs has it (:class:`NotReady`), waits on."""
        done = 0
        for detach in self.all():
            path = self._directory / detach.file_name
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(turn(detach))  # first, as an ADD does that forgets what was put off
                except NotReady as error:
                    log.info("detach.still_deferred", container=detach.container_id, reason=str(error))
                    continue
                held.enter_context(self._replaying)
                if not path.exists():
                    continue
                try:
                    run(detach)
                except (DatastoreError, StoreNotReady) as error:
                    log.info("detach.still_deferred", container=detach.container_id, reason=str(error))
                    return done
                except CalicoError as error:
                    log.error("detach.gave_up", container=detach.container_id, reason=str(error))
                path.unlink(missing_ok=True)
            done += 1
            log.info("detach.replayed", network=detach.network, container=detach.container_id)
        return done

    def drop(self, network: str, attachments: frozenset[tuple[str, str]]) -> None:
        """Forget those of a network whose attachments live."""
        for detach in self.all():
            if detach.network == network and (detach.container_id, detach.interface) in attachments:
                with self._replaying:
                    (self._directory / detach.file_name).unlink(missing_ok=True)

    def _take(self, path: Path) -> bytes | None:
        with self._replaying:
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                return None
            path.unlink(missing_ok=True)
            return content

    def _put_back(self, path: Path, content: bytes) -> None:
        """What fails is logged: whoever waits is to hear of the first error."""
        try:
            self._write(path, content)
        except OSError as error:
            log.error("detach.lost", file=path.name, reason=error.strerror)

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._directory) if name.endswith(_SUFFIX)]  # noqa: PTH208 - names only
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _write(self, path: Path, content: bytes) -> None:
        replace_file(path, content, 0o600)
        folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

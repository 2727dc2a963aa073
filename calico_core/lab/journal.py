"""``lab.json`` and the locks around it: one writer at a time, whichever process it lives in.

Two locks, taken in this order: *life* for bringing the laboratory up or down, *record* for one change of the file.
Both end with their process, so a crash leaves nothing locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from calico_core.errors import InvalidRequest, NotReady
from calico_core.lab.record import LabRecord
from calico_core.model.codec import decode_json, encode

ROOT = Path("/run/calico-lab")
_FILE, _LIFE, _RECORD = "lab.json", "life.lock", "record.lock"
_LOCK_WAIT_S = 60.0
_POLL_S = 0.002
_ERASE_ATTEMPTS = 100


class Journal:
    """The state directory of one laboratory."""

    def __init__(self, name: str, *, root: Path = ROOT) -> None:
        self.name = name
        self.directory = root / name

    def begin(self, record: LabRecord) -> None:
        """Write down a new laboratory. What a crashed predecessor left without a record is taken over.

        :raises InvalidRequest: there is one of that name.
        """
        for _ in range(3):
            # a removal that ends now may take the parent with it
            with contextlib.suppress(FileNotFoundError):
                self.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.directory.mkdir(mode=0o700, exist_ok=True)
                break
        with self._locked(_RECORD):
            if self._path.exists():
                raise InvalidRequest(
                    "name", f"laboratory {self.name!r} exists already: calicoctl lab down --name {self.name}"
                )
            self._write(record)

    def find(self) -> LabRecord | None:
        """None when there is no laboratory of that name."""
        try:
            value = self._path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        found: LabRecord = decode_json(LabRecord, value, what=str(self._path))
        return found

    def read(self) -> LabRecord:
        found = self.find()
        if found is None:
            raise self._missing()
        return found

    def update(self, change: Callable[[LabRecord], LabRecord]) -> LabRecord:
        """Replace the record by what ``change`` makes of it; gives the new one."""
        with self._locked(_RECORD):
            record = change(self.read())
            self._write(record)
            return record

    @contextlib.contextmanager
    def life(self) -> Iterator[None]:
        """Nobody else brings this laboratory up or down inside the block."""
        with self._locked(_LIFE):
            if not self.directory.exists():
                raise self._missing()
            yield

    def erase(self) -> None:
        """Remove the directory, the record last, so that an interrupted removal can be repeated."""
        with contextlib.suppress(FileNotFoundError):
            for entry in self.directory.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                elif entry != self._path:
                    entry.unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
        for _ in range(_ERASE_ATTEMPTS):  # who waits for a lock may put its file back in between
            if not self.directory.exists():
                break
            shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.directory.parent.rmdir()

    @property
    def _path(self) -> Path:
        return self.directory / _FILE

    def _write(self, record: LabRecord) -> None:
        temporary = self.directory / f".{_FILE}"
        temporary.write_bytes(encode(record))
        temporary.chmod(0o600)
        temporary.replace(self._path)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        path = self.directory / name
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                raise self._missing() from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same_file(descriptor, path):
                    break
            except BlockingIOError:
                pass
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise NotReady(f"laboratory {self.name!r} is being changed by another process")
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            os.close(descriptor)

    def _missing(self) -> InvalidRequest:
        known = ", ".join(laboratory_names(self.directory.parent)) or "none"
        return InvalidRequest("name", f"there is no laboratory {self.name!r}; those there are: {known}")


def laboratory_names(root: Path = ROOT) -> tuple[str, ...]:
    """Every laboratory of this machine, also half-made ones."""
    try:
        return tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir()))
    except FileNotFoundError:
        return ()


def _is_same_file(descriptor: int, path: Path) -> bool:
    """Whether the path still names what was opened: the holder before us may have erased it."""
    ours = os.fstat(descriptor)
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)

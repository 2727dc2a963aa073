"""The two executables in each directory that can be written: a host may have several that its runtimes look in, some of
them on a file system that nobody writes. Source: cni specification 7.2.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from calico_cni.placed_files import write_file
from calico_cni.programs import IPAM_PROGRAM, NETWORK_PROGRAM
from calico_core.errors import InvalidRequest
from calico_core.trusted_directory import prepare_directory

PROGRAMS = (NETWORK_PROGRAM, IPAM_PROGRAM)

_NOT_WRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Placed(NamedTuple):
    """``standing``: what a runtime will run, ``written`` among it."""

    written: tuple[Path, ...]
    standing: tuple[Path, ...]


def paths_in(directories: Sequence[Path], skipped: Collection[str] = ()) -> tuple[Path, ...]:
    return tuple(directory / program for directory in directories for program in PROGRAMS if program not in skipped)


def writable(directories: Sequence[Path], tell: Callable[[str], None], *, root: Path) -> tuple[Path, ...]:
    """Those that are there, or could be made, and may be trusted.

    :raises InvalidRequest: one is not to be trusted, or none is left.
    """
    found = []
    reasons = []
    for directory in directories:
        try:
            prepare_directory(directory, root=root)
            _try_out(directory)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            reasons.append(f"{directory}: {error.strerror}")
            continue
        found.append(directory)
    if not found:
        raise InvalidRequest("bin_dir", f"no directory can be written: {', '.join(reasons)}")
    for reason in reasons:
        tell(f"left out {reason}")
    return tuple(found)


def _try_out(directory: Path) -> None:
    """Raises what the kernel says, which is more than permissions tell."""
    descriptor, path = tempfile.mkstemp(prefix=".calico.", dir=directory)
    os.close(descriptor)
    Path(path).unlink()


def place(directories: Sequence[Path], program: bytes, *, skipped: Collection[str]) -> Placed:
    """Write what differs."""
    standing = paths_in(directories, skipped)
    return Placed(tuple(path for path in standing if write_file(path, program, 0o755)), standing)


def standing_in(directories: Sequence[Path], skipped: Collection[str]) -> Placed:
    """What somebody else looks after, whole in one of the directories at least.

    :raises InvalidRequest: naming the first that is missing.
    """
    missing: list[Path] = []
    for directory in directories:
        paths = paths_in([directory], skipped)
        absent = [path for path in paths if not (path.is_file() and os.access(path, os.X_OK))]
        if not absent:
            return Placed((), paths)
        missing += absent
    raise InvalidRequest("UPDATE_CNI_BINARIES", f"is false, and {missing[0]} is missing or cannot be run")

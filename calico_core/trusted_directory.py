"""Directories whose files run as root: nobody else may be able to put others in their place.

That takes more than a look at the directory: who may rename one that leads to it, or a link on the way, may do the
same. Sticky directories such as ``/tmp`` are no danger on the way, for only an owner may rename there. Members of a
group that may write to one are trusted: who gave it the group's bit meant them, as Debian does ``staff`` in
``/usr/local``.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from calico_core.errors import InvalidRequest

_ROOT = Path("/")
_PARENT_MODE = 0o755
_MAX_LINKS = 40  # as the kernel's own walk


def prepare_directory(directory: Path, mode: int = 0o755, *, root: Path = _ROOT, field: str = "directory") -> None:
    """Made when missing, with those that lead to it. ``root``: the file system of a host that is mounted or being made;
    what is above it is not looked at, and links must not lead out of it.

    :raises InvalidRequest: naming what somebody else could change, or what is in the way.
    """
    directory, base = Path.cwd() / directory, Path.cwd() / root
    if not directory.is_relative_to(base):
        base = _ROOT
    base.mkdir(_PARENT_MODE, parents=True, exist_ok=True)
    found, waiting, links = base, [*reversed(directory.relative_to(base).parts)], 0
    while waiting:
        part = waiting.pop()
        step = found.parent if part == ".." else found / part  # a link may begin again at the top
        if not step.is_relative_to(base):
            raise InvalidRequest(field, f"{directory} leads out of {base}")
        status = _made(step, _PARENT_MODE if waiting else mode)
        if status.st_uid not in {0, os.geteuid()}:
            reason = f"{step} belongs to user {status.st_uid}, who could change what runs as root: chown it to root"
            raise InvalidRequest(field, reason)
        if not stat.S_ISLNK(status.st_mode):
            _check_mode(step, status.st_mode, field, may_be_sticky=bool(waiting))
            found = step
            continue
        links += 1
        if not waiting or links > _MAX_LINKS:
            raise InvalidRequest(field, f"{step} is a symbolic link: give its target")
        waiting += reversed(step.readlink().parts)


def _made(step: Path, mode: int) -> os.stat_result:
    try:
        return step.lstat()
    except FileNotFoundError:
        step.mkdir(mode, exist_ok=True)
        return step.lstat()


def _check_mode(step: Path, mode: int, field: str, *, may_be_sticky: bool) -> None:
    if not stat.S_ISDIR(mode):
        raise InvalidRequest(field, f"{step} is not a directory")
    if mode & stat.S_IWOTH and not (may_be_sticky and mode & stat.S_ISVTX):
        raise InvalidRequest(field, f"{step} is writable by everybody: chmod o-w it")

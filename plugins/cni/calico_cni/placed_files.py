"""Files that runtimes read while they are written: by rename, only where something changes, and nowhere that others may
write. Source: cni specification 2.4 and 7.2."""

from __future__ import annotations

import stat
from pathlib import Path

from calico_core.errors import InvalidRequest
from calico_core.files import replace_file


def prepare_directory(directory: Path, mode: int = 0o755) -> None:
    """Made when missing. Who can replace files in it would run as root at the next container start."""
    directory.mkdir(mode=mode, parents=True, exist_ok=True)
    found = directory.lstat().st_mode
    if stat.S_ISLNK(found):
        raise InvalidRequest("directory", f"{directory} is a symbolic link: give its target")
    if not stat.S_ISDIR(found):
        raise InvalidRequest("directory", f"{directory} is not a directory")
    if found & stat.S_IWOTH:
        raise InvalidRequest("directory", f"{directory} is writable by everybody: chmod o-w it")


def write_file(path: Path, content: bytes, mode: int) -> bool:
    """Whether it had to be. By rename: an executable may be running, and a reader sees the old file or the new one."""
    if is_same(path, content, mode):
        return False
    replace_file(path, content, mode)
    return True


def is_same(path: Path, content: bytes, mode: int) -> bool:
    try:
        found = path.lstat()
        return stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == mode and path.read_bytes() == content
    except FileNotFoundError:
        return False

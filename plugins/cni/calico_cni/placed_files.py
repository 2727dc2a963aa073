"""Files that runtimes read while they are written: by rename, and only where something changes. Source: cni
specification 2.4 and 7.2."""

from __future__ import annotations

import stat
from pathlib import Path

from calico_core.files import replace_file


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

"""Sysctls of the network namespace a thread stands in: files under ``/proc/sys/net``, open, write, close.

``/proc/sys/net`` follows the namespace of the thread that opens it; use :func:`netns.run_in` for another one.
"""

from __future__ import annotations

import errno
import os
from functools import cache
from pathlib import Path

import msgspec

from calico_core.errors import KernelRefused
from calico_core.log import get_logger

ROOT = "/proc/sys/net/"
log = get_logger(__name__)


class Setting(msgspec.Struct, frozen=True):
    """One file and its value. ``is_vital`` false: a failure is only logged."""

    path: str
    value: str
    is_vital: bool = True


@cache
def has_ipv6() -> bool:
    """Whether the kernel speaks IPv6 at all."""
    return Path(ROOT, "ipv6").is_dir()


def read(path: str) -> str:
    """The value of ``ipv4/conf/all/forwarding`` and the like, without its newline."""
    try:
        descriptor = os.open(ROOT + path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, 4096).decode().rstrip("\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KernelRefused(f"read sysctl net/{path}", error.errno or errno.EIO) from error


def find(path: str) -> str | None:
    """As :func:`read`; None when the file is not there."""
    try:
        return read(path)
    except KernelRefused as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise


def write(path: str, value: str) -> None:
    try:
        descriptor = os.open(ROOT + path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KernelRefused(f"write sysctl net/{path} = {value}", error.errno or errno.EIO) from error


def apply(settings: tuple[Setting, ...]) -> None:
    """Write all. A vital one that fails ends it with its error; the others are logged."""
    for setting in settings:
        try:
            write(setting.path, setting.value)
        except KernelRefused as error:
            if setting.is_vital:
                raise
            log.warning("sysctl.skipped", path=setting.path, value=setting.value, error=str(error))


def first_difference(settings: tuple[Setting, ...]) -> Setting | None:
    """The first vital setting the kernel does not have, or None."""
    for setting in settings:
        if setting.is_vital and find(setting.path) != setting.value:
            return setting
    return None

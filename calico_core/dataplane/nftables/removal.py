"""Taking our table out of the kernel, for a dataplane of another kind that has taken over."""

from __future__ import annotations

import errno

from calico_core.dataplane.nftables.names import FAMILY, TABLE
from calico_core.dataplane.nftables.netfilter import NftSocket
from calico_core.dataplane.nftables.policy_table import PolicyTable
from calico_core.dataplane.nftables.reference_tables import remove_tables
from calico_core.errors import KernelRefused
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.log import get_logger

_NO_NFTABLES = (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL)

log = get_logger(__name__)


def remove_ours(namespace_fd: int | None = None) -> None:
    """The table with all it holds; routes stay. No such table, or a kernel without nftables, is fine.

    :raises KernelRefused: it could not be removed.
    """
    if not stands(namespace_fd):
        return
    table = PolicyTable(DataplaneOptions(), namespace_fd)
    try:
        table.purge()
    finally:
        table.close()
    log.info("table.removed", table=f"{FAMILY} {TABLE}")


def remove_reference(namespace_fd: int | None = None) -> tuple[str, ...]:
    """The tables of the reference agent. Gives what was removed; a kernel without nftables is fine.

    :raises KernelRefused: one of them stays.
    """
    try:
        socket = NftSocket(namespace_fd)
    except KernelRefused as error:
        if error.errno in _NO_NFTABLES:
            return ()
        raise
    try:
        return remove_tables(socket)
    finally:
        socket.close()


def is_supported() -> bool:
    """Whether this kernel has nftables at all.

    :raises KernelRefused: it does not say.
    """
    try:
        socket = NftSocket()
    except KernelRefused as error:
        if error.errno in _NO_NFTABLES:
            return False
        raise
    try:
        socket.generation()
    except KernelRefused as error:
        if error.errno in _NO_NFTABLES:
            return False
        raise
    finally:
        socket.close()
    return True


def stands(namespace_fd: int | None = None) -> bool:
    """Whether our table is there and in force.

    :raises KernelRefused: the kernel does not say.
    """
    try:
        socket = NftSocket(namespace_fd)
    except KernelRefused as error:
        if error.errno in _NO_NFTABLES:
            return False
        raise
    try:
        return socket.has_table()
    except KernelRefused as error:
        if error.errno in _NO_NFTABLES:
            return False
        raise
    finally:
        socket.close()

"""Tables that the reference agent of our day leaves behind: ``calico`` of the families ip and ip6, ours is of inet.

They are known by chains that carry ``cali-`` (``filter-cali-FORWARD``, ``cali-tw-…``): a table of that name without
such a chain is somebody else's. Layouts: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno

from calico_core.dataplane.linux.netlink import Request, parse_attributes, text
from calico_core.dataplane.nftables.names import TABLE
from calico_core.dataplane.nftables.netfilter import GETCHAIN, NftSocket
from calico_core.errors import KernelRefused

_DELTABLE = 10 << 8 | 2
_FAMILIES = {"ip": 2, "ip6": 10}
_MARK = b"cali-"


def remove_tables(socket: NftSocket) -> tuple[str, ...]:
    """Gives what was removed.

    :raises KernelRefused: one of them stays.
    """
    removed: list[str] = []
    for family, number in _FAMILIES.items():
        if not _is_of_the_reference(socket, number):
            continue
        header = bytes((number, 0, 0, 0))
        try:
            socket.commit([(_DELTABLE, 0, header + text(1, TABLE))], f"remove table {family} {TABLE}")
        except KernelRefused as error:
            if error.errno != errno.ENOENT:
                raise
        removed.append(f"table {family} {TABLE}")
    return tuple(removed)


def _is_of_the_reference(socket: NftSocket, family: int) -> bool:
    for body in socket.dump(Request("list chains", GETCHAIN, 0, bytes((family, 0, 0, 0)))):
        found = parse_attributes(body, 4)
        if found[1].rstrip(b"\0") == TABLE.encode() and _MARK in found[3]:
            return True
    return False

"""Link requests and what the kernel says about links (rtnetlink(7), linux/if_link.h, linux/veth.h).

A pair of either kind is one device with two ends. netkit (Linux 6.7) is the one whose ends can carry BPF programs; with
its policy to forward and in mode L2 it does what a veth does.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Request,
    attribute,
    nested,
    parse_attributes,
    text,
    u32,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_GETNSID, RTM_NEWNSID = 90, 88

IFF_UP, IFF_RUNNING, IFF_LOWER_UP = 0x1, 0x40, 0x10000
IF_OPER_UNKNOWN, IF_OPER_UP = 0, 6

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK = 1, 3, 4, 5
IFLA_MASTER, IFLA_OPERSTATE, IFLA_LINKINFO, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 10, 16, 18, 27, 28, 29
IFLA_AF_SPEC, IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES, IFLA_LINK_NETNSID = 26, 31, 32, 37
IFLA_INET_CONF = 1
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_NETKIT_PEER_INFO, IFLA_NETKIT_POLICY, IFLA_NETKIT_PEER_POLICY, IFLA_NETKIT_MODE = 1, 3, 4, 5
NETKIT_PASS, NETKIT_L2 = 0, 0
PAIR_KINDS = ("veth", "netkit")
NETNSA_NSID, NETNSA_FD = 1, 3
RTEXT_FILTER_SKIP_STATS = 8

_INFO = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change mask
_RTGEN = b"\0\0\0\0"  # rtgenmsg: family, padded
_U32 = struct.Struct("=I")


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """An interface as the kernel describes it.

    ``peer_index`` is the other end of a pair in its own namespace (0: none named); ``peer_namespace_id`` the id this
    namespace knows the peer's by, None when the peer is in the same one.
    """

    index: int
    name: str
    flags: int
    mac: bytes = b""
    mtu_bytes: int = 0
    oper_state: int = 0
    group: int = 0
    bridge_index: int = 0
    kind: str = ""
    peer_index: int = 0
    peer_namespace_id: int | None = None

    @property
    def is_up(self) -> bool:
        """Administratively up."""
        return bool(self.flags & IFF_UP)

    @property
    def is_operational(self) -> bool:
        """Traffic can flow. Devices without a state of their own count by their flag."""
        return self.is_up and self.oper_state in (IF_OPER_UP, IF_OPER_UNKNOWN)

    @property
    def has_carrier(self) -> bool:
        """Of a pair: the other end exists and is up too."""
        return bool(self.flags & IFF_LOWER_UP)


def parse_link(body: bytes) -> Link:
    """A link from the body of RTM_NEWLINK or RTM_DELLINK."""
    _family, _type, index, flags, _change = _INFO.unpack_from(body)
    found = parse_attributes(body, _INFO.size)
    info = parse_attributes(found.get(IFLA_LINKINFO, b""))
    namespace_id = found.get(IFLA_LINK_NETNSID)
    return Link(
        index=index,
        name=_string(found.get(IFLA_IFNAME, b"")),
        flags=flags,
        mac=found.get(IFLA_ADDRESS, b""),
        mtu_bytes=_number(found.get(IFLA_MTU)),
        oper_state=found.get(IFLA_OPERSTATE, b"\0")[0],
        group=_number(found.get(IFLA_GROUP)),
        bridge_index=_number(found.get(IFLA_MASTER)),
        kind=_string(info.get(IFLA_INFO_KIND, b"")),
        peer_index=_number(found.get(IFLA_LINK)),
        peer_namespace_id=_U32.unpack(namespace_id)[0] if namespace_id else None,
    )


def get_link(name: str = "", index: int = 0) -> Request:
    """One link by name, or by index when no name is given."""
    selector = text(IFLA_IFNAME, name) if name else b""
    body = _info(index=index) + selector + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return Request(f"look up link {name or index}", RTM_GETLINK, 0, body)


def dump_links() -> Request:
    return Request("list links", RTM_GETLINK, 0, _info() + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS))


def add_veth(
    name: str,
    peer_name: str,
    *,
    mac: bytes = b"",
    peer_mac: bytes = b"",
    peer_namespace_fd: int | None = None,
    mtu_bytes: int = 0,
    queues: int = 0,
    is_up: bool = False,
) -> Request:
    """A veth pair. A MAC given here counts as set, so udev's persistent-MAC policy leaves it alone.

    ``mtu_bytes`` 0 is the kernel's default, ``queues`` 0 likewise; ``peer_namespace_fd`` None keeps the peer here.
    The peer cannot be made up: it is configured before it has its other end (ENOTCONN).
    """
    common = _size(mtu_bytes, queues)
    peer = nested(VETH_INFO_PEER, _end(peer_name, peer_mac, common, namespace_fd=peer_namespace_fd))
    own = _end(name, mac, common, flags=IFF_UP if is_up else 0)
    body = own + _link_info("veth", peer)
    return Request(f"create veth pair {name}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def add_netkit(
    name: str,
    peer_name: str,
    *,
    mac: bytes = b"",
    peer_mac: bytes = b"",
    peer_namespace_fd: int | None = None,
    mtu_bytes: int = 0,
    queues: int = 0,
) -> Request:
    """As :func:`add_veth`, of the kind netkit: in mode L2, both ends forward what no BPF program decides.

    This end is the primary one, which alone may be given programs and deletes both. What a packet is marked with is
    scrubbed on its way between namespaces, as of a veth: that is the default, so nothing says it. The kernel answers
    EOPNOTSUPP when it has no netkit.
    """
    common = _size(mtu_bytes, queues)
    data = (
        u32(IFLA_NETKIT_MODE, NETKIT_L2),
        u32(IFLA_NETKIT_POLICY, NETKIT_PASS),
        u32(IFLA_NETKIT_PEER_POLICY, NETKIT_PASS),
        nested(IFLA_NETKIT_PEER_INFO, _end(peer_name, peer_mac, common, namespace_fd=peer_namespace_fd)),
    )
    body = _end(name, mac, common) + _link_info("netkit", b"".join(data))
    return Request(f"create netkit pair {name}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def add_bridge(name: str) -> Request:
    """A bridge, for laboratories: workloads are routed, never bridged."""
    body = _info() + text(IFLA_IFNAME, name) + _link_info("bridge", b"")
    return Request(f"create bridge {name}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def set_link(
    name: str = "",
    *,
    index: int = 0,
    is_up: bool | None = None,
    mtu_bytes: int = 0,
    mac: bytes = b"",
    rename: str = "",
    group: int | None = None,
    namespace_fd: int | None = None,
    bridge_index: int | None = None,
    ipv4_settings: Mapping[int, int] | None = None,
) -> Request:
    """Change a link found by ``index``, or by ``name`` when that is 0. What is not given stays as it is.

    ``bridge_index`` makes it a port of that bridge, 0 frees it. ``ipv4_settings``: values by IPV4_DEVCONF_* number
    (linux/ip.h), what ``/proc/sys/net/ipv4/conf/<link>/`` has as files. Renaming needs the index and, in kernels before
    6.2, a link that is down.
    """
    assert index or (name and not rename), "a rename names the link by its index"
    flags, change = (IFF_UP if is_up else 0, IFF_UP) if is_up is not None else (0, 0)
    parts = [_info(index=index, flags=flags, change=change)]
    if not index or rename:
        parts.append(text(IFLA_IFNAME, rename or name))
    if mtu_bytes:
        parts.append(u32(IFLA_MTU, mtu_bytes))
    if mac:
        parts.append(attribute(IFLA_ADDRESS, mac))
    if group is not None:
        parts.append(u32(IFLA_GROUP, group))
    if namespace_fd is not None:
        parts.append(u32(IFLA_NET_NS_FD, namespace_fd))
    if bridge_index is not None:
        parts.append(u32(IFLA_MASTER, bridge_index))
    if ipv4_settings:
        values = [u32(number, value) for number, value in sorted(ipv4_settings.items())]
        parts.append(nested(IFLA_AF_SPEC, nested(socket.AF_INET, nested(IFLA_INET_CONF, *values))))
    return Request(f"change link {name or index}", RTM_SETLINK, 0, b"".join(parts))


def delete_link(name: str = "", *, index: int = 0) -> Request:
    selector = b"" if index else text(IFLA_IFNAME, name)
    return Request(f"delete link {name or index}", RTM_DELLINK, 0, _info(index=index) + selector)


def delete_group(group: int) -> Request:
    """Every link of the group at once. Group 0 is everybody's and refused here."""
    assert group, "group 0 holds every ordinary link"
    return Request(f"delete link group {group}", RTM_DELLINK, 0, _info() + u32(IFLA_GROUP, group))


def get_namespace_id(namespace_fd: int) -> Request:
    """The id our namespace knows another one by; links name their peer's namespace with it."""
    return Request("look up namespace id", RTM_GETNSID, 0, _RTGEN + u32(NETNSA_FD, namespace_fd))


def parse_namespace_id(body: bytes) -> int | None:
    """None when no id was ever given to it."""
    raw = parse_attributes(body, len(_RTGEN)).get(NETNSA_NSID)
    number: int = struct.unpack("=i", raw)[0] if raw else -1
    return number if number >= 0 else None


def _info(*, index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return _INFO.pack(0, 0, index, flags, change or flags)


def _size(mtu_bytes: int, queues: int) -> bytes:
    """Of both ends alike; 0 is the kernel's default."""
    size = u32(IFLA_MTU, mtu_bytes) if mtu_bytes else b""
    return size + (u32(IFLA_NUM_TX_QUEUES, queues) + u32(IFLA_NUM_RX_QUEUES, queues) if queues else b"")


def _end(name: str, mac: bytes, size: bytes, *, flags: int = 0, namespace_fd: int | None = None) -> bytes:
    """One end of a pair."""
    parts = [_info(flags=flags), text(IFLA_IFNAME, name), size]
    if mac:
        parts.append(attribute(IFLA_ADDRESS, mac))
    if namespace_fd is not None:
        parts.append(u32(IFLA_NET_NS_FD, namespace_fd))
    return b"".join(parts)


def _link_info(kind: str, data: bytes) -> bytes:
    # the kind goes without its closing zero, as iproute2 sends it
    return nested(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, kind.encode()), nested(IFLA_INFO_DATA, data))


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _number(value: bytes | None) -> int:
    number: int = _U32.unpack(value)[0] if value else 0
    return number

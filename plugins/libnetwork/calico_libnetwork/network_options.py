"""``docker network create``: which options are known, and what they say. Source: libnetwork specification 3.1, 5.3.

An option that would be ignored is refused: nobody shall believe that ``--internal`` isolates here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from calico_core.errors import InvalidRequest
from calico_core.model.ids import check_interface, check_name
from calico_libnetwork.errors import Refused
from calico_libnetwork.wire import GENERIC_OPTIONS

PROFILE = "org.projectcalico.profile"
MTU = "org.projectcalico.mtu"
INTERFACE_PREFIX = "org.projectcalico.ifprefix"
IPIP = "ipip"
NAT_OUTGOING = "nat-outgoing"

_EVERYWHERE = frozenset({PROFILE, MTU, INTERFACE_PREFIX})
_FOREIGN_IPAM = frozenset({IPIP, NAT_OUTGOING})
_ENGINE_PREFIX = "com.docker.network."
_IGNORED = frozenset({"com.docker.network.enable_ipv6", "com.docker.network.enable_ipv4", GENERIC_OPTIONS})
_TRUE, _FALSE = frozenset({"", "true", "1", "yes"}), frozenset({"false", "0", "no"})
_MAX_MTU_BYTES = 65535
_MAX_PREFIX = 11  # the engine adds a number, and the kernel takes 15


class NetworkOptions(NamedTuple):
    """``profile`` empty: none was named. ``mtu_bytes`` 0: as the node has it. ``generic``: as they were given."""

    profile: str
    mtu_bytes: int
    interface_prefix: str
    is_ipip: bool
    is_nat_outgoing: bool
    generic: dict[str, str]


def parse_options(options: dict[str, Any], *, is_calico_ipam: bool) -> NetworkOptions:
    """Raises ``Refused`` for unknown flags, ``InvalidRequest`` for a value that is wrong."""
    generic = options.get(GENERIC_OPTIONS) or {}
    if not isinstance(generic, dict):
        raise InvalidRequest(GENERIC_OPTIONS, "is not an object")
    known = _EVERYWHERE if is_calico_ipam else _EVERYWHERE | _FOREIGN_IPAM
    unknown = [name for name in generic if name not in known]
    unknown += [_flag(name) for name, value in options.items() if name not in _IGNORED and value is not False]
    if unknown:
        what = "the flag" if len(unknown) == 1 else "the flags"
        raise Refused(f"Calico driver does not support {what} {', '.join(sorted(unknown))}.")
    texts = {name: str(value) for name, value in generic.items()}
    return NetworkOptions(
        profile=check_name(texts[PROFILE], field=PROFILE) if PROFILE in texts else "",
        mtu_bytes=_mtu(texts.get(MTU, "0")),
        interface_prefix=_prefix(texts[INTERFACE_PREFIX]) if INTERFACE_PREFIX in texts else "",
        is_ipip=_boolean(texts, IPIP),
        is_nat_outgoing=_boolean(texts, NAT_OUTGOING),
        generic=texts,
    )


def _flag(name: str) -> str:
    return f"--{name.removeprefix(_ENGINE_PREFIX)}"


def _boolean(texts: dict[str, str], name: str) -> bool:
    """Present without a value is true."""
    text = texts.get(name, "false").strip().lower()
    if text not in _TRUE | _FALSE:
        raise InvalidRequest(name, f"{text!r} is not true or false")
    return text in _TRUE


def _mtu(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= _MAX_MTU_BYTES):
        raise InvalidRequest(MTU, f"{text!r} is not a number from 0 (the node's own) to {_MAX_MTU_BYTES}")
    return int(text)


def _prefix(text: str) -> str:
    if len(text) > _MAX_PREFIX:
        raise InvalidRequest(INTERFACE_PREFIX, f"{text!r} has more than {_MAX_PREFIX} characters")
    return check_interface(text, field=INTERFACE_PREFIX)

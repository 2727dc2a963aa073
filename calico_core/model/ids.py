"""Names that appear in keys: their types, their legal spelling, their escaping."""

from __future__ import annotations

import re
from typing import Annotated, NewType

import msgspec

from calico_core.errors import InvalidRequest

HostName = NewType("HostName", str)
OrchestratorId = NewType("OrchestratorId", str)
WorkloadId = NewType("WorkloadId", str)
EndpointId = NewType("EndpointId", str)
ProfileId = NewType("ProfileId", str)
TierName = NewType("TierName", str)
PolicyName = NewType("PolicyName", str)
HandleId = NewType("HandleId", str)

Label = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_./-]{1,512}\Z")]
"""The name of a label, held to its spelling wherever it is decoded."""
Tag = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.-]+\Z")]

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_INTERFACE = re.compile(r"[A-Za-z0-9_-]{1,15}")
#: All that Linux allows in a name and that is a plain character to nft, in quotes, and to iptables: no ``+``, ``*``,
#: ``!``, quote or ``\\``, and neither ``/`` nor ``:``, which no interface has.
_HOST_INTERFACE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.,@=~#^&-]{1,15}")
_LABEL = re.compile(r"[A-Za-z0-9_./-]{1,512}")


def check_name(text: str, *, field: str) -> str:
    """Profiles, tags, tiers, policies, hosts. Source: datastore specification 1.4."""
    if not isinstance(text, str) or not _NAME.fullmatch(text) or text in {".", ".."}:
        raise InvalidRequest(field, f"{text!r} may hold only letters, digits, '_', '.' and '-'")
    return text


def check_interface(text: str, *, field: str = "name") -> str:
    """A workload's. Source: datastore specification 4.1."""
    if not isinstance(text, str) or not _INTERFACE.fullmatch(text):
        raise InvalidRequest(field, f"{text!r} is not an interface name: 1 to 15 letters, digits, '_' or '-'")
    return text


def check_host_interface(text: str, *, field: str = "name") -> str:
    """One of the host's own, as ``eth0.100``; a dataplane may write it as it is."""
    if not isinstance(text, str) or not is_host_interface(text):
        raise InvalidRequest(
            field, f"{text!r} is not an interface name: 1 to 15 letters, digits or _ . , @ = ~ # ^ & -"
        )
    return text


def is_host_interface(text: str) -> bool:
    return _HOST_INTERFACE.fullmatch(text) is not None


def check_label(text: str, *, field: str = "labels") -> str:
    if not isinstance(text, str) or not _LABEL.fullmatch(text):
        raise InvalidRequest(field, f"label name {text!r} may hold only letters, digits, '_', '.', '/' and '-'")
    return text


def escape(segment: str) -> str:
    """One key segment: ``%`` → ``%25``, then ``/`` → ``%2f``."""
    if "%" in segment or "/" in segment:
        return segment.replace("%", "%25").replace("/", "%2f")
    return segment


def unescape(segment: str) -> str:
    return segment.replace("%2f", "/").replace("%25", "%") if "%" in segment else segment

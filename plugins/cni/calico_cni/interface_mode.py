"""``interface_mode``: whether the networks of a container share one interface. Source: cni specification 3 and 5.4.

Before 0.3.0 a result names no interface, and a container was thought to have one. Networks in mode ``single`` look for
the container's endpoint under the name of its usual first interface, whatever the calls name, so two that come at once
meet there.
"""

from __future__ import annotations

import msgspec

from calico_cni.programs import IPAM_PROGRAM
from calico_cni.versions import is_at_least, known_version
from calico_cni.wire import NetworkConfiguration, decode

SINGLE = "single"
PER_ATTACHMENT = "per-attachment"
AUTO = "auto"

_SEPARATE_SINCE = "0.3.0"


def shares_interface(configuration: NetworkConfiguration) -> bool:
    """Whether the network is content with the interface that another one has made."""
    if configuration.interface_mode == AUTO and configuration.has_prev_result:
        return False
    return _is_single(configuration.interface_mode, configuration.version, configuration.ipam.type)


def may_share_interface(stdin: bytes) -> bool:
    """As :func:`shares_interface`, of a configuration that may be unusable otherwise, for detaching."""
    try:
        found = decode(stdin, _ModeOnly)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return _is_single(found.interface_mode, known_version(found.version), found.ipam.type)


class _IpamType(msgspec.Struct, frozen=True):
    type: str = ""


class _ModeOnly(msgspec.Struct, frozen=True):
    interface_mode: str = AUTO
    version: object = msgspec.field(default=None, name="cniVersion")
    ipam: _IpamType = _IpamType()


def _is_single(mode: str, version: str, ipam_type: str) -> bool:
    if mode == AUTO:
        # other plugins take their addresses back with the network that asked, while another may still use them
        return not is_at_least(version, _SEPARATE_SINCE) and ipam_type == IPAM_PROGRAM
    return mode == SINGLE

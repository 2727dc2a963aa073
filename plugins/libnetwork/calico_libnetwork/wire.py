"""Requests and replies of the remote driver protocol, one type each.

Names are Docker's. Unknown fields are ignored; null and, outside of options, an empty text count as absent: Go writes
both for what was never set. Source: libnetwork specification 2.2, 3 and 4.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from netaddr import EUI, IPAddress, IPNetwork

from calico_core.errors import InvalidRequest
from calico_core.model import codec

GENERIC_OPTIONS = "com.docker.network.generic"
PORT_MAP = "com.docker.network.portmap"

M = TypeVar("M", bound="Message")


class Message(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """An object of the protocol."""


class Nothing(Message, frozen=True):
    """A request without arguments, and the reply of success."""


# --- plugin ----------------------------------------------------------------------------------------


class Activated(Message, frozen=True):
    implements: tuple[str, ...]


# --- network driver --------------------------------------------------------------------------------


class NetworkCapabilities(Message, frozen=True):
    scope: str
    connectivity_scope: str


class IpamData(Message, frozen=True):
    """``gateway`` is an address with a prefix length; as text, because that of Calico's IPAM is ``0.0.0.0/0``."""

    address_space: str = ""
    pool: IPNetwork | None = None
    gateway: str = ""
    aux_addresses: dict[str, str] = {}


class CreateNetwork(Message, frozen=True):
    network_id: str = msgspec.field(name="NetworkID")
    options: dict[str, Any] = {}
    ipv4_data: tuple[IpamData, ...] = msgspec.field(default=(), name="IPv4Data")
    ipv6_data: tuple[IpamData, ...] = msgspec.field(default=(), name="IPv6Data")


class NetworkOnly(Message, frozen=True):
    network_id: str = msgspec.field(name="NetworkID")


class Interface(Message, frozen=True):
    """Addresses carry a prefix length and host bits."""

    address: str = ""
    address_ipv6: str = msgspec.field(default="", name="AddressIPv6")
    mac_address: EUI | None = None


class CreateEndpoint(Message, frozen=True):
    network_id: str = msgspec.field(name="NetworkID")
    endpoint_id: str = msgspec.field(name="EndpointID")
    interface: Interface = Interface()
    options: dict[str, Any] = {}


class EndpointOnly(Message, frozen=True):
    network_id: str = msgspec.field(name="NetworkID")
    endpoint_id: str = msgspec.field(name="EndpointID")
    options: dict[str, Any] = {}


class Join(Message, frozen=True):
    network_id: str = msgspec.field(name="NetworkID")
    endpoint_id: str = msgspec.field(name="EndpointID")
    sandbox_key: str = ""
    options: dict[str, Any] = {}


class AllocatedNetwork(Message, frozen=True):
    options: dict[str, str] = {}


class MadeInterface(Message, frozen=True):
    """``mac_address`` empty: it was given. Another one would make the engine roll back."""

    mac_address: str


class CreatedEndpoint(Message, frozen=True):
    interface: MadeInterface


class OperInfo(Message, frozen=True):
    value: dict[str, str] = {}


class InterfaceName(Message, frozen=True):
    src_name: str
    dst_prefix: str


class StaticRoute(Message, frozen=True):
    """``route_type``: 0 by way of ``next_hop``, 1 connected."""

    destination: str
    route_type: int
    next_hop: str = ""


class Joined(Message, frozen=True):
    interface_name: InterfaceName
    gateway: str = ""
    gateway_ipv6: str = msgspec.field(default="", name="GatewayIPv6")
    static_routes: tuple[StaticRoute, ...] = ()
    disable_gateway_service: bool = False


# --- address driver --------------------------------------------------------------------------------


class IpamCapabilities(Message, frozen=True):
    requires_mac_address: bool = msgspec.field(default=False, name="RequiresMACAddress")
    requires_request_replay: bool = False


class AddressSpaces(Message, frozen=True):
    local_default_address_space: str = "CalicoLocalAddressSpace"
    global_default_address_space: str = "CalicoGlobalAddressSpace"


class RequestPool(Message, frozen=True):
    address_space: str = ""
    pool: IPNetwork | None = None
    sub_pool: str = ""
    options: dict[str, str] = {}
    v6: bool = False


class Pool(Message, frozen=True):
    pool_id: str = msgspec.field(name="PoolID")
    pool: str
    data: dict[str, str] = {}


class ReleasePool(Message, frozen=True):
    pool_id: str = msgspec.field(default="", name="PoolID")


class RequestAddress(Message, frozen=True):
    pool_id: str = msgspec.field(name="PoolID")
    address: IPAddress | None = None
    options: dict[str, str] = {}


class Address(Message, frozen=True):
    address: str
    data: dict[str, str] = {}


class ReleaseAddress(Message, frozen=True):
    pool_id: str = msgspec.field(default="", name="PoolID")
    address: IPAddress | None = None


# --- both ways -------------------------------------------------------------------------------------


def decode_request(kind: type[M], body: bytes) -> M:
    """Raises ``InvalidRequest(field)``. Arguments that nobody needs may be missing altogether."""
    if kind is Nothing:
        return kind()
    if not body.strip():
        # a request that Docker repeats after a broken connection may have lost its body
        raise InvalidRequest("body", "is empty, and this call needs arguments: send it again")
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest("body", f"is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise InvalidRequest("body", "is not a JSON object")
    decoded: M = codec.from_builtins(kind, {key: _cleaned(key, each) for key, each in tree.items() if _is_set(each)})
    return decoded


def encode_message(message: Message) -> bytes:
    return msgspec.json.encode(message)


def _cleaned(key: str, value: Any) -> Any:
    """Options keep their empty texts: that is how a flag without a value arrives."""
    if isinstance(value, dict):
        is_options = key == "Options"
        return {
            name: each if is_options else _cleaned(name, each)
            for name, each in value.items()
            if (each is not None if is_options else _is_set(each))
        }
    if isinstance(value, list):
        return [_cleaned(key, each) for each in value]
    return value


def _is_set(value: Any) -> bool:
    return value is not None and value != ""

"""Results, errors and the VERSION reply in the shape of every version.

:class:`Result` is the newest shape; older ones are made from it and read into it. Source: cni specification 2.5.
"""

from __future__ import annotations

from typing import Any

import msgspec
from netaddr import IPAddress

from calico_cni.errors import code_of, details_of
from calico_cni.versions import NEWEST, VERSIONS, is_at_least, parse_version
from calico_cni.wire import decode
from calico_core.errors import CalicoError, InvalidRequest
from calico_core.model.addresses import parse_address
from calico_core.model.endpoints import Dns

_LATE_INTERFACE_KEYS = ("mtu", "socketPath", "pciID")
_LATE_ROUTE_KEYS = ("mtu", "advmss", "priority", "table", "scope")


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Defaults are not written."""


class Interface(_Part, frozen=True, rename={"socket_path": "socketPath", "pci_id": "pciID"}):
    """``sandbox`` is the namespace of a container's interface, empty for one of the host."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


class Ip(_Part, frozen=True):
    """``address`` is a CIDR with its host bits. ``interface`` is an index into the interfaces; None: not said."""

    address: str
    interface: int | None = None
    gateway: str | None = None

    @property
    def version(self) -> int:
        return self.host.version

    @property
    def host(self) -> IPAddress:
        return parse_address(self.address.partition("/")[0], field="ips.address")


class Route(_Part, frozen=True):
    dst: str
    gw: str | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None

    @property
    def version(self) -> int:
        return parse_address(self.dst.partition("/")[0], field="routes.dst").version


class Result(_Part, frozen=True):
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Ip, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()


class _LegacyIp(_Part, frozen=True):
    ip: str
    gateway: str | None = None
    routes: tuple[Route, ...] = ()


class _Written(Result, frozen=True):
    """Any shape, as read."""

    cni_version: object = msgspec.field(default=None, name="cniVersion")
    ip4: _LegacyIp | None = None
    ip6: _LegacyIp | None = None


def encode_result(result: Result, version: str) -> bytes:
    """:raises InvalidRequest: the version demands an address and there is none."""
    shape = _modern(result, version) if is_at_least(version, "0.3.0") else _legacy(result)
    if result.dns != Dns():
        shape["dns"] = msgspec.to_builtins(result.dns)
    return msgspec.json.encode({"cniVersion": version, **shape})


def decode_result(raw: bytes, default_version: str) -> Result:
    """A result of any version; one without a version is of ``default_version``.

    :raises InvalidRequest: it is no result.
    :raises IncompatibleVersion: it is of a version that we do not speak.
    """
    try:
        written = decode(raw, _Written)
        version = parse_version(written.cni_version, field="prevResult.cniVersion") if written.cni_version else None
    except msgspec.DecodeError as error:
        raise InvalidRequest("prevResult", str(error)) from error
    if is_at_least(version or default_version, "0.3.0"):
        return Result(interfaces=written.interfaces, ips=written.ips, routes=written.routes, dns=written.dns)
    families = [each for each in (written.ip4, written.ip6) if each is not None]
    return Result(
        ips=tuple(Ip(address=each.ip, gateway=each.gateway) for each in families),
        routes=tuple(route for each in families for route in each.routes),
        dns=written.dns,
    )


def encode_error(error: BaseException, version: str) -> bytes:
    """The error object. Unexpected errors show their type only, for their text may hold anything."""
    is_ours = isinstance(error, CalicoError)
    message = str(error) if is_ours else f"internal error: {type(error).__name__}; the node's log has more"
    shape: dict[str, Any] = {"cniVersion": version, "code": code_of(error, version), "msg": message}
    details = details_of(error)
    if details:
        shape["details"] = details
    return msgspec.json.encode(shape)


def encode_versions(requested: object) -> bytes:
    """The VERSION reply: the version asked with is given back as it came."""
    shown = requested if isinstance(requested, str) and requested else NEWEST
    return msgspec.json.encode({"cniVersion": shown, "supportedVersions": VERSIONS})


def _modern(result: Result, version: str) -> dict[str, Any]:
    shape: dict[str, Any] = msgspec.to_builtins(result)
    shape.pop("dns", None)
    if not is_at_least(version, "1.1.0"):
        _drop(shape.get("interfaces", ()), _LATE_INTERFACE_KEYS)
        _drop(shape.get("routes", ()), _LATE_ROUTE_KEYS)
    if not is_at_least(version, "1.0.0"):
        shape["ips"] = [{"version": str(ip.version), **msgspec.to_builtins(ip)} for ip in result.ips]
    return shape


def _legacy(result: Result) -> dict[str, Any]:
    shape: dict[str, Any] = {}
    for version in (4, 6):
        first = next((ip for ip in result.ips if ip.version == version), None)
        if first is None:
            continue
        routes = [{"dst": each.dst, "gw": each.gw} for each in result.routes if each.version == version]
        _drop([route for route in routes if route["gw"] is None], ("gw",))
        whole = {"ip": first.address, "gateway": first.gateway, "routes": routes}
        shape[f"ip{version}"] = {key: value for key, value in whole.items() if value}
    if not shape:
        raise InvalidRequest("ips", "a result of versions before 0.3.0 needs an address")
    return shape


def _drop(objects: Any, keys: tuple[str, ...]) -> None:
    for each in objects:
        for key in keys:
            each.pop(key, None)

"""Requests and replies of the hook protocol: one JSON object in, one out.

The checks come in the order, and in the words, that the reference program had. Source: mesos specification 2.1, 2.2.
"""

from __future__ import annotations

from typing import Any

import msgspec
from netaddr import IPAddress

from calico_mesos import arguments as read
from calico_mesos.errors import Refused

_MAX_ERROR = 2000


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """``hostname`` is what the agent calls itself; empty while it does not know."""

    hostname: str = ""


class Allocate(Request, frozen=True, tag="allocate"):
    """``static`` are the addresses a label names; they count towards ``num_ipv4``."""

    uid: str
    num_ipv4: int
    num_ipv6: int
    static: tuple[IPAddress, ...] = ()
    netgroups: tuple[str, ...] = ()


class Reserve(Request, frozen=True, tag="reserve"):
    uid: str
    addresses: tuple[IPAddress, ...]
    netgroups: tuple[str, ...] = ()


class Release(Request, frozen=True, tag="release"):
    """Exactly one of the two is set; ``addresses`` may be empty."""

    uid: str | None = None
    addresses: tuple[IPAddress, ...] | None = None


class Isolate(Request, frozen=True, tag="isolate"):
    container_id: str
    pid: int
    addresses: tuple[IPAddress, ...]
    netgroups: tuple[str, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class Cleanup(Request, frozen=True, tag="cleanup"):
    container_id: str


class Version(Request, frozen=True, tag="version"):
    """A question for people."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """``error`` None is success, and is written."""

    ipv4: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    ipv6: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    version: str | msgspec.UnsetType = msgspec.UNSET
    error: str | None = None


def parse_request(stdin: bytes, *, is_strict: bool = False) -> Request:
    """Raises ``Refused``. With ``is_strict`` an empty ``hostname`` is a missing one."""
    body = _decode(stdin)
    command = body.get("command")
    if not command:
        raise Refused("Missing command")
    if command == "version":
        return Version()
    arguments = body.get("args")
    if arguments is None:
        raise Refused("Missing args")
    if not isinstance(arguments, dict):
        raise Refused("args must be a JSON object")
    parse = _PARSERS.get(command) if isinstance(command, str) else None
    if parse is None:
        raise Refused(f"Unknown command: {str(command)[:100]}")
    return parse(arguments, is_strict)


def command_of(stdin: bytes) -> str:
    """For the log; empty when there is none to be seen."""
    try:
        return str(_decode(stdin).get("command", ""))[:20]
    except Refused:
        return ""


def encode_reply(reply: Reply) -> bytes:
    return msgspec.json.encode(reply)


def encode_error(text: str) -> bytes:
    """On one line, and short enough that the caller reads it whole."""
    return encode_reply(Reply(error=" ".join(text.split())[:_MAX_ERROR]))


def _decode(stdin: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(stdin)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(str(error)) from error
    if not isinstance(body, dict):
        raise Refused("The request must be a JSON object")
    return body


def _allocate(arguments: dict[str, Any], is_strict: bool) -> Allocate:
    uid = read.required_text(arguments, "uid")
    hostname = _hostname(arguments, is_strict=is_strict)
    counts = ("num_ipv4", "num_ipv6")
    for name in counts:
        if arguments.get(name) is None:
            raise Refused(f"Missing {name}")
    num_ipv4, num_ipv6 = (read.required_count(arguments, name) for name in counts)
    netgroups = read.netgroups(arguments.get("netgroups"))
    static = read.static_addresses(read.labels(arguments.get("labels")))
    read.check_number(max(num_ipv4, len(static)) + num_ipv6)
    return Allocate(
        hostname=hostname, uid=uid, num_ipv4=num_ipv4, num_ipv6=num_ipv6, static=static, netgroups=netgroups
    )


def _reserve(arguments: dict[str, Any], is_strict: bool) -> Reserve:
    return Reserve(
        uid=read.required_text(arguments, "uid"),
        hostname=_hostname(arguments, is_strict=is_strict),
        addresses=read.address_families(arguments),
        netgroups=read.netgroups(arguments.get("netgroups")),
    )


def _release(arguments: dict[str, Any], is_strict: bool) -> Release:  # noqa: ARG001 - as the others
    uid, ips = arguments.get("uid"), arguments.get("ips")
    if uid is not None and ips is not None:
        raise Refused("Supply either uid or ips, not both.")
    if ips is not None:
        return Release(addresses=read.address_list(ips))
    if uid is None or uid == "":
        raise Refused("Must supply either uid or ips.")
    if not isinstance(uid, str):
        raise Refused("uid must be a string")
    return Release(uid=uid)


def _isolate(arguments: dict[str, Any], is_strict: bool) -> Isolate:
    return Isolate(
        container_id=read.required_text(arguments, "container_id"),
        hostname=_hostname(arguments, is_strict=is_strict),
        pid=read.required_pid(arguments),
        addresses=read.address_families(arguments),
        netgroups=read.netgroups(arguments.get("netgroups")),
        labels=read.labels(arguments.get("labels")),
    )


def _cleanup(arguments: dict[str, Any], is_strict: bool) -> Cleanup:
    return Cleanup(
        container_id=read.required_text(arguments, "container_id"),
        hostname=_hostname(arguments, is_strict=is_strict),
    )


def _hostname(arguments: dict[str, Any], *, is_strict: bool) -> str:
    return read.required_text(arguments, "hostname", may_be_empty=not is_strict)


_PARSERS = {
    "allocate": _allocate,
    "reserve": _reserve,
    "release": _release,
    "isolate": _isolate,
    "cleanup": _cleanup,
}

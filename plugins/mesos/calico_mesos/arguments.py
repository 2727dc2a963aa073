"""Single arguments of a request: addresses, counts, labels, netgroups; refused in the words callers know.

Source of the texts and of what is accepted: mesos specification 2.1 and 2.2.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from netaddr import IPAddress

from calico_core.errors import InvalidRequest
from calico_core.model.addresses import parse_address, parse_network
from calico_core.model.ids import check_name
from calico_mesos.errors import Refused

STATIC_LABEL = "ipv4_addrs"
MAX_ADDRESSES = 32

_MAX_STATIC_TEXT = 4096  # the parser of Python literals recurses: bounded before it begins
_DIGITS = re.compile(r"[+-]?\d{1,9}")
_OTHER = re.compile(r"[^-_.A-Za-z0-9]+")
_DOTTED_RUN = re.compile(r"[.-]*\.[.-]*")


def required_text(arguments: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    value = arguments.get(name)
    if value is None or (value == "" and not may_be_empty):
        raise Refused(f"Missing {name}")
    if not isinstance(value, str):
        raise Refused(f"{name} must be a string")
    return value


def required_count(arguments: Mapping[str, Any], name: str) -> int:
    """A number from 0 on; as text too."""
    value = arguments.get(name)
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refused(f"{name} must be an integer")
    if value < 0:
        raise Refused(f"{name} must not be negative")
    return value


def check_number(count: int) -> None:
    if count > MAX_ADDRESSES:
        raise Refused(f"At most {MAX_ADDRESSES} addresses can be had at once, not {count}.")


def required_pid(arguments: Mapping[str, Any]) -> int:
    if arguments.get("pid") in (None, ""):
        raise Refused("Missing pid")
    pid = required_count(arguments, "pid")
    if pid == 0:
        raise Refused("pid must be the number of a process")
    return pid


def address_families(arguments: Mapping[str, Any]) -> tuple[IPAddress, ...]:
    """Both address fields, IPv4 first, each address once.

    Refuses a family in the other's field, and that there is no address at all.
    """
    found = []
    for version, other in ((4, 6), (6, 4)):
        for address in address_list(arguments.get(f"ipv{version}_addrs")):
            if address.version != version:
                raise Refused(f"IPv{other} address must not be placed in IPv{version} address field.")
            found.append(address)
    if not found:
        raise Refused("Must provide at least one IPv4 or IPv6 address.")
    check_number(len(found))
    return tuple(dict.fromkeys(found))


def address_list(value: Any) -> tuple[IPAddress, ...]:
    """A list of texts; a prefix length is accepted and dropped. None is an empty list."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Refused(f"IP addresses must be provided as JSON list, not: {_shown(value)}")
    return tuple(_address(each) for each in value)


def netgroups(value: Any) -> tuple[str, ...]:
    """Names in the order given, each once. They become parts of datastore keys."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise Refused("Must provide list of netgroups.")
    try:
        return tuple(dict.fromkeys(check_name(each, field="netgroup") for each in value))
    except InvalidRequest as error:
        raise Refused(str(error)) from error


def labels(value: Any) -> dict[str, str]:
    """An object, or the list of ``key`` and ``value`` that the agent's module sends; the last of equal keys wins.
    What is no text is kept as its JSON."""
    if value is None:
        return {}
    if isinstance(value, dict):
        return {key: _text(each) for key, each in value.items()}
    if not isinstance(value, list) or not all(isinstance(each, dict) and "key" in each for each in value):
        raise Refused("Labels must be provided as JSON object, or as list of objects with key and value.")
    return {_text(each["key"]): _text(each.get("value") or "") for each in value}


def static_addresses(wanted: Mapping[str, str]) -> tuple[IPAddress, ...]:
    """The label by which an application asked for addresses before there was a field for it: JSON or a Python literal,
    a list of texts and nothing else. Never evaluated."""
    text = wanted.get(STATIC_LABEL)
    if text is None:
        return ()
    found = _literal(text)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise Refused(f"Label {STATIC_LABEL} is malformed: give a list of IPv4 addresses, such as ['192.168.3.1'].")
    addresses = tuple(dict.fromkeys(_address(each) for each in found))
    if any(address.version != 4 for address in addresses):
        raise Refused("IPv6 address must not be placed in IPv4 address field.")
    return addresses


def sanitised(text: str) -> str:
    """A legal label: ``/a b/c`` → ``a-b.c``. Without one legal character nothing is left."""
    legal = _OTHER.sub("-", text.replace("/", "."))
    return _DOTTED_RUN.sub(".", legal).strip(".-")


def _address(value: Any) -> IPAddress:
    try:
        if not isinstance(value, str):
            raise InvalidRequest("address", "is no text")
        parse_network(value)  # for the prefix length
        return parse_address(value.partition("/")[0])
    except InvalidRequest as error:
        raise Refused(f"IP address could not be parsed: {_shown(value)}") from error


def _literal(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        pass
    if len(text) > _MAX_STATIC_TEXT:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _shown(value: Any) -> str:
    return _text(value)[:200]

"""bytes ⇄ model: the only place where records are decoded.

Everything is one JSON document but for the raw texts (keys whose ``record_type`` is ``str``). Errors name the key and
the path of the field.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import msgspec
from netaddr import EUI, IPAddress, IPNetwork

from calico_core.errors import CalicoError, InvalidRecord, InvalidRequest
from calico_core.model.addresses import parse_address, parse_mac, parse_network
from calico_core.model.keys import (
    AffinityKey,
    BlockKey,
    HostEndpointKey,
    Key,
    NetworkSetKey,
    PolicyKey,
    PoolKey,
    ProfileRulesKey,
    TierKey,
    WorkloadEndpointKey,
)

_NULL_IS_ABSENT = (
    HostEndpointKey, NetworkSetKey, PolicyKey, PoolKey, ProfileRulesKey, TierKey, WorkloadEndpointKey,
)  # fmt: skip
_NULL_LIST = re.compile(rb'"(attributes|sequenceNumberForAllocation|deleted|strict_affinity)"\s*:\s*null')
_TOO_DEEP = "is nested too deeply"
_AT = re.compile(r" - at (?:`key` in )?`(?P<path>[^`]*)`$")


def decode(key: Key, value: bytes) -> Any:
    """The record at ``key``. Raises ``InvalidRecord(key, path)``; never changes what it was given."""
    if key.record_type is str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise InvalidRecord(key.path, "", "is not UTF-8 text") from None
    try:
        record = _decode(key.path, key.record_type, _prepared(key, value))
    except RecursionError as error:
        raise InvalidRecord(key.path, "", _TOO_DEEP) from error
    if isinstance(key, PoolKey | BlockKey) and record.cidr != key.cidr:
        raise InvalidRecord(key.path, "$.cidr", f"is {record.cidr}, the key says {key.cidr}")
    return record


def decode_json(record_type: Any, value: bytes, *, what: str = "request") -> Any:
    """A message of another protocol, with the same address types. Raises ``InvalidRequest(field)``."""
    try:
        return _decoder(record_type).decode(value)
    except msgspec.ValidationError as error:
        path, reason = _split(str(error))
        raise InvalidRequest(path.removeprefix("$").removeprefix(".") or what, reason) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(what, f"is not JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest(what, _TOO_DEEP) from error


def encode(record: Any) -> bytes:
    """JSON, or the text itself for a raw key."""
    return record.encode() if isinstance(record, str) else _ENCODER.encode(record)


def to_builtins(record: Any) -> Any:
    """Dicts, lists and strings, for tables and YAML."""
    return msgspec.to_builtins(record, enc_hook=_encode_hook)


def from_builtins(record_type: Any, value: Any) -> Any:
    """The reverse. Raises ``InvalidRequest(field)``."""
    try:
        return msgspec.convert(value, record_type, dec_hook=_decode_hook)
    except msgspec.ValidationError as error:
        path, reason = _split(str(error))
        raise InvalidRequest(path.removeprefix("$.") or "value", reason) from error
    except RecursionError as error:
        raise InvalidRequest("value", _TOO_DEEP) from error


def _prepared(key: Key, value: bytes) -> bytes:
    """What writers in other languages and of other times mean, as our types have it."""
    if not value and isinstance(key, AffinityKey):
        return b"{}"  # older writers leave the value empty: confirmed
    if isinstance(key, BlockKey):
        return _without_null_lists(value)
    if isinstance(key, _NULL_IS_ABSENT) and b"null" in value:
        value = _without_nulls(value)
    if isinstance(key, WorkloadEndpointKey) and b'"expected_ipv' in value:
        _refuse_expected_addresses(key, value)
    return value


def _without_null_lists(block: bytes) -> bytes:
    """Writers in other languages put null where nothing was ever assigned."""
    if _NULL_LIST.search(block) is None:
        return block
    try:
        document = msgspec.json.decode(block)
    except msgspec.DecodeError:
        return block
    if not isinstance(document, dict):
        return block
    return msgspec.json.encode({name: value for name, value in document.items() if value is not None})


def _without_nulls(value: bytes) -> bytes:
    """A null field equals one that is not there: writers in other languages put it where a list is empty."""

    def without(found: Any) -> Any:
        if isinstance(found, dict):
            return {name: without(each) for name, each in found.items() if each is not None}
        return [without(each) for each in found] if isinstance(found, list) else found

    try:
        return msgspec.json.encode(without(msgspec.json.decode(value)))
    except msgspec.DecodeError:
        return value


def _refuse_expected_addresses(key: WorkloadEndpointKey, value: bytes) -> None:
    try:
        document = msgspec.json.decode(value)
    except msgspec.DecodeError:
        return
    for field in ("expected_ipv4_addrs", "expected_ipv6_addrs"):
        if isinstance(document, dict) and document.get(field) is not None:
            raise InvalidRecord(key.path, f"$.{field}", "belongs to host endpoints, not to workload endpoints")


def _decode(path: str, record_type: Any, value: bytes) -> Any:
    try:
        return _decoder(record_type).decode(value)
    except msgspec.ValidationError as error:
        field, reason = _split(str(error))
        raise InvalidRecord(path, field, reason) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRecord(path, "", f"is not JSON: {error}") from error


def _split(message: str) -> tuple[str, str]:
    match = _AT.search(message)
    return (match["path"], message[: match.start()]) if match else ("$", message)


@lru_cache(maxsize=1024)
def _decoder(record_type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(record_type, dec_hook=_decode_hook)


def _decode_hook(kind: type, value: Any) -> Any:
    try:
        if kind is IPNetwork:
            return parse_network(value)
        if kind is IPAddress:
            return parse_address(value)
        if kind is EUI:
            return parse_mac(value)
    except CalicoError as error:
        raise ValueError(error.reason if isinstance(error, InvalidRequest) else str(error)) from error
    raise NotImplementedError(kind)


def _encode_hook(value: Any) -> str:
    if isinstance(value, IPNetwork | IPAddress | EUI):
        return str(value)
    raise NotImplementedError(type(value))


_ENCODER = msgspec.json.Encoder(enc_hook=_encode_hook)


def build_types(root: type[Any] = msgspec.Struct) -> None:
    """Have msgspec look at every record and message class that is loaded now, in this thread.

    It does so when a class is first decoded, without a lock: two threads that meet there crash the interpreter
    (seen with 0.18 to 0.22). So a process that decodes in several threads calls this once everything is imported.
    """
    for kind in root.__subclasses__():
        build_types(kind)
        if not kind.__module__.startswith("msgspec"):
            _build(kind)


def _build(kind: type[Any]) -> None:
    try:
        _decoder(kind)  # type: ignore[arg-type]
    except (TypeError, NameError):
        return  # holds what cannot be decoded, so nobody does


for _key in Key.__subclasses__():
    _decoder(_key.record_type)  # see build_types: those of the datastore are decoded wherever this is imported

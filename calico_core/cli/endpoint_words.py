"""Words for parts of endpoints: ``NAME=VALUE`` labels and ``NAME:PROTOCOL:PORT`` ports. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from calico_core.errors import InvalidRequest
from calico_core.model import codec
from calico_core.model.endpoints import EndpointPort
from calico_core.model.ids import check_label
from calico_core.model.numbers import decimal


def parse_labels(words: Iterable[str], *, field: str = "--label") -> dict[str, str]:
    labels: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator:
            raise InvalidRequest(field, f"{word!r} is not NAME=VALUE")
        labels[check_label(name, field=field)] = value
    return labels


def parse_ports(words: Iterable[str], *, field: str = "--port") -> tuple[EndpointPort, ...]:
    return tuple(_parse_port(word, field) for word in words)


def _parse_port(word: str, field: str) -> EndpointPort:
    parts = word.split(":")
    number = decimal(parts[2]) if len(parts) == 3 else None
    if number is None:
        raise InvalidRequest(field, f"{word!r} is not NAME:PROTOCOL:PORT, such as http:tcp:80")
    try:
        port: EndpointPort = codec.from_builtins(EndpointPort, {"name": parts[0], "protocol": parts[1], "port": number})
    except InvalidRequest as error:
        raise InvalidRequest(field, f"{word!r}: {error.reason}") from error
    return port


def port_word(port: EndpointPort) -> str:
    return f"{port.name}:{port.protocol}:{port.port}"

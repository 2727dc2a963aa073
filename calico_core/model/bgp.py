"""BGP facts of the datastore. Source: datastore specification 2.2."""

from __future__ import annotations

import re

from netaddr import IPAddress

from calico_core.errors import InvalidRequest
from calico_core.model.numbers import decimal
from calico_core.model.record import Record

DEFAULT_AS = 64511
_DOTTED = re.compile(r"([0-9]{1,5})\.([0-9]{1,5})")


def parse_as_number(text: str | int, *, field: str = "as_num") -> int:
    """1–4294967295 plain, or ``a.b`` with halves up to 65535."""
    plain = str(text).strip()
    dotted = _DOTTED.fullmatch(plain)
    if dotted and int(dotted[1]) <= 65535 and int(dotted[2]) <= 65535:
        number = int(dotted[1]) * 65536 + int(dotted[2])
    else:
        number = decimal(plain) or 0
    if not 1 <= number <= 4294967295:
        raise InvalidRequest(field, f"{text!r} is not an AS number from 1 to 4294967295, or two halves as 64.512")
    return number


class BgpPeer(Record, frozen=True, omit_defaults=False):
    """A peer outside the mesh; ``as_num`` is text, as the reference system writes it."""

    ip: IPAddress
    as_num: str

    def __post_init__(self) -> None:
        try:
            parse_as_number(self.as_num)
        except InvalidRequest as error:
            raise ValueError(str(error)) from error


class NodeMesh(Record, frozen=True, omit_defaults=False):
    """Whether every host peers with every other."""

    enabled: bool = True

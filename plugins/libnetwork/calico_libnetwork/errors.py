"""CalicoError → HTTP status and the sentence that Docker prints: one table, read from the top.

Never 200: for an IPAM call the engine would not see the error and go on with an empty reply. Source: libnetwork
specification 2.4.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgspec

from calico_core.errors import (
    AddressInUse,
    CalicoError,
    InvalidInput,
    InvalidRecord,
    InvalidSettings,
    KeyExists,
    OutsidePools,
    Unavailable,
)


class Refused(InvalidInput):
    """A request that cannot be served as it stands; the text is for the user's terminal."""


class UnknownMethod(InvalidInput):
    """No interface of this socket has such a method. To Docker 404 means just that."""


class WrongVerb(InvalidInput):
    """The method exists, and is not called like this."""


class TooLarge(InvalidInput):
    """The body is longer than any request of the protocol."""


_Row = tuple[type[BaseException], HTTPStatus, Callable[[Any], str]]

TABLE: tuple[_Row, ...] = (
    (UnknownMethod, HTTPStatus.NOT_FOUND, str),
    (WrongVerb, HTTPStatus.METHOD_NOT_ALLOWED, str),
    (TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str),
    (InvalidRecord, HTTPStatus.INTERNAL_SERVER_ERROR, str),
    (InvalidSettings, HTTPStatus.INTERNAL_SERVER_ERROR, str),
    (InvalidInput, HTTPStatus.BAD_REQUEST, str),
    (AddressInUse, HTTPStatus.INTERNAL_SERVER_ERROR, lambda e: f"The address {e.address} is already in use"),
    (
        OutsidePools,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        lambda e: f"The address {e.address} is not in one of the configured Calico IP pools",
    ),
    (
        KeyExists,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        lambda e: f"{e.key} in the Calico datastore belongs to another container",
    ),
    (
        Unavailable,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        lambda e: f"The Calico datastore at {e.endpoint} does not answer ({e.cause}): check it, then try again",
    ),
    (CalicoError, HTTPStatus.INTERNAL_SERVER_ERROR, str),
    (
        BaseException,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        lambda e: f"Calico failed ({type(e).__name__}): the log of calico-node says more",
    ),
)


def describe(error: BaseException) -> tuple[HTTPStatus, str]:
    return next((status, make(error)) for kind, status, make in TABLE if isinstance(error, kind))


def encode_error(text: str) -> bytes:
    """Both keys: the network driver's client reads one, the address driver's the other."""
    line = " ".join(text.split())[:1000]
    return msgspec.json.encode({"Err": line, "Error": line})

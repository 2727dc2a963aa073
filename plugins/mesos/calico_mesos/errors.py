"""CalicoError → the sentence in a reply's ``error``: one table, read from the top. Source: mesos specification 2.2.

The agent shows the sentence and looks at nothing else, so it has to say all. Words that the reference program used are
kept: people search for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calico_core.errors import (
    AddressInUse,
    CalicoError,
    InvalidInput,
    OutsidePools,
    Unavailable,
)

ALREADY_ISOLATED = "This container has already been configured with Calico Networking."


class Refused(InvalidInput):
    """A request that cannot be served as it stands; the text is the reply's."""


def _unavailable(error: Unavailable) -> str:
    scheme = error.endpoint.partition(":")[0]
    what = "the datastore" if scheme in {"sqlite", "memory"} or error.endpoint.startswith("/") else "etcd"
    return (
        f"Failed to communicate with {what} at '{error.endpoint}'. Ensure that it is up and running, and that"
        " ETCD_AUTHORITY or CALICO_DATASTORE of the node names it."
    )


TABLE: tuple[tuple[type[BaseException], Callable[[Any], str]], ...] = (
    (Unavailable, _unavailable),
    (AddressInUse, lambda error: f"IP '{error.address}' already in use."),
    (OutsidePools, lambda error: f"IP '{error.address}' is in no Calico pool."),
    (CalicoError, str),
    (BaseException, lambda error: f"Unhandled error {type(error).__name__}; the log of the node says more."),
)


def text_of(error: BaseException) -> str:
    return next(make(error) for kind, make in TABLE if isinstance(error, kind))

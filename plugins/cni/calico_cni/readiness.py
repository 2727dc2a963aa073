"""``readiness_gates``: addresses that must answer before an interface is worth making, such as a proxy's own readiness
page. Source: cni specification 3.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from calico_core.errors import InvalidRequest, NotReady

WITHIN_S = 30.0
INTERVAL_S = 5.0
_ATTEMPT_S = 2.0
_FIELD = "readiness_gates"


def check_gates(gates: tuple[str, ...]) -> None:
    """:raises InvalidRequest: one is no address that can be asked."""
    for number, gate in enumerate(gates):
        _parse(number, gate)


def wait_for_gates(
    gates: tuple[str, ...],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Each has answered with a status of 2xx or 3xx when this returns.

    :raises NotReady: one has not within 30 s.
    """
    deadline = clock() + WITHIN_S
    for number, gate in enumerate(gates):
        parts = _parse(number, gate)
        while reason := _reason_against(parts):
            if clock() + INTERVAL_S > deadline:
                raise NotReady(f"{_FIELD}: {gate}: {reason}")
            sleep(INTERVAL_S)


def _parse(number: int, gate: str) -> SplitResult:
    try:
        parts = urlsplit(gate)
        is_usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise InvalidRequest(f"{_FIELD}[{number}]", f"{gate!r} is not an http or https URL")
    return parts


def _reason_against(parts: SplitResult) -> str:
    """Empty when it is ready."""
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_ATTEMPT_S)
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return "" if http.client.OK <= status < http.client.BAD_REQUEST else f"status {status}"

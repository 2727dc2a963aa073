"""Whether a call is to tell where its time went. Not every runtime lets an operator set its environment: the word may
also stand in ``CNI_ARGS`` or in the network configuration."""

from __future__ import annotations

import msgspec

from calico_core.interfaces.integration import Call

VARIABLE = "CALICO_TRACE"
KEY = "trace"


class _Traced(msgspec.Struct, frozen=True):
    trace: bool | int | str = False


def is_traced(call: Call) -> bool:
    """Never raises: a call that is refused is traced too."""
    if call.environment.get(VARIABLE) == "1":
        return True
    pairs = call.environment.get("CNI_ARGS", "").split(";")
    return f"{VARIABLE}=1" in (pair.strip() for pair in pairs) or _is_key_set(call.stdin)


def _is_key_set(stdin: bytes) -> bool:
    if b'"trace"' not in stdin:
        return False
    try:
        return str(msgspec.json.decode(stdin, type=_Traced).trace).lower() in {"true", "1"}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False

"""What a person can do about a value that its record does not take: the decoder's reason, with what would be right."""

from __future__ import annotations

import difflib
import re
from typing import Any

from msgspec import inspect

from calico_core.errors import InvalidRequest

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_NO_SUCH_VALUE = "Invalid enum value"
_NAME = re.compile(r"[^.\[\]]+")


def with_what_is_right(record_type: Any, error: InvalidRequest) -> InvalidRequest:
    """The same error where nothing better can be said."""
    field = error.field.removeprefix("$").removeprefix(".")
    kinds = _at(record_type, field)
    if unknown := _UNKNOWN.fullmatch(error.reason):
        known = [each.encode_name for kind in kinds if isinstance(kind, inspect.StructType) for each in kind.fields]
        near = difflib.get_close_matches(unknown[1], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return InvalidRequest(f"{field}.{unknown[1]}".removeprefix("."), f"is no field{hint}")
    if error.reason.startswith(_NO_SUCH_VALUE):
        words = [str(each) for kind in kinds if isinstance(kind, inspect.LiteralType) for each in kind.values]
        words += ["a number" for kind in kinds if isinstance(kind, inspect.IntType | inspect.FloatType)][:1]
        return InvalidRequest(field, f"{error.reason.removeprefix(_NO_SUCH_VALUE).strip()} is not {_either(words)}")
    return error


def _at(record_type: Any, path: str) -> list[inspect.Type]:
    """What may stand there, of several any."""
    kinds = _parts(inspect.type_info(record_type))
    for name in _NAME.findall(path):
        if name.isdigit() or name == "...":
            kinds = [part for kind in kinds for part in _parts(getattr(kind, "item_type", None))]
        else:
            fields = [each for kind in kinds if isinstance(kind, inspect.StructType) for each in kind.fields]
            kinds = [part for each in fields if each.encode_name == name for part in _parts(each.type)]
    return kinds


def _parts(kind: inspect.Type | None) -> list[inspect.Type]:
    if kind is None:
        return []
    return list(kind.types) if isinstance(kind, inspect.UnionType) else [kind]


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "a value of it"

"""Policies as people write them: JSON or YAML documents ``{tier, name, policy}``. Pure.

``policy`` is the record itself (``docs/reference/datastore-keys.md``). What is stored tolerates unknown fields; what a
person writes does not: a mistyped ``selector`` would select everything.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from calico_core.cli.field_words import with_what_is_right
from calico_core.errors import InvalidRequest
from calico_core.model import codec
from calico_core.model.ids import check_name
from calico_core.model.keys import PolicyKey
from calico_core.model.policies import DEFAULT_TIER, Policy, check_hooks

_FIELDS = ("tier", "name", "policy")
_POLICY_FIELDS = tuple(field.encode_name for field in msgspec.structs.fields(Policy))


class PolicyDocument(NamedTuple):
    key: PolicyKey
    policy: Policy


def parse_documents(text: str) -> list[PolicyDocument]:
    """One object, a list of objects, or several YAML documents of either. All are checked before any is given; an
    error names the document (from 1) and the field. Raises ``InvalidRequest``."""
    found = [each for each in _flat(_load(text)) if each is not None]
    if not found:
        raise InvalidRequest("file", "holds no document {tier, name, policy}")
    documents = [
        _document(each, f"document {number}" if len(found) > 1 else "") for number, each in enumerate(found, 1)
    ]
    seen: set[PolicyKey] = set()
    for document in documents:
        if document.key in seen:
            raise InvalidRequest("name", f"policy {document.key.tier}/{document.key.name} stands twice in the file")
        seen.add(document.key)
    return documents


def _load(text: str) -> Iterable[Any]:
    try:
        return [json.loads(text)]
    except ValueError as error:
        cause = error
    try:
        import yaml
    except ImportError:
        raise InvalidRequest("file", f"is not JSON ({cause}); YAML needs the package PyYAML") from None
    try:
        return list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        at = f"line {where.line + 1}: " if where is not None else ""
        raise InvalidRequest("file", f"{at}is neither JSON nor YAML: {getattr(error, 'problem', error)}") from error


def _flat(documents: Iterable[Any]) -> Iterable[Any]:
    for each in documents:
        if isinstance(each, list):
            yield from each
        else:
            yield each


def _document(value: Any, where: str) -> PolicyDocument:
    prefix = f"{where}: " if where else ""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{prefix}document", "is not an object {tier, name, policy}")
    check_fields(value, _FIELDS, prefix)
    tier = check_name(value.get("tier", DEFAULT_TIER), field=f"{prefix}tier")
    name = check_name(value.get("name", ""), field=f"{prefix}name")
    record = value.get("policy")
    if not isinstance(record, Mapping):
        raise InvalidRequest(f"{prefix}policy", "give the policy: an object with at least a selector")
    check_fields(record, _POLICY_FIELDS, f"{prefix}policy.")
    try:
        policy: Policy = codec.from_builtins(Policy, dict(record))
        if isinstance(policy.order, float) and not math.isfinite(policy.order):
            raise InvalidRequest("order", f"{policy.order} is no number to sort by; without order it comes last")
        check_hooks(policy)
    except InvalidRequest as error:
        found = with_what_is_right(Policy, error)
        field = found.field.removeprefix("$").removeprefix(".")
        raise InvalidRequest(f"{prefix}policy.{field}".removesuffix("."), found.reason) from error
    if policy.id not in {None, name}:
        raise InvalidRequest(f"{prefix}policy.id", f"{policy.id!r} is not the policy's name {name!r}")
    return PolicyDocument(PolicyKey(tier, name), policy)


def check_fields(value: Mapping[Any, Any], known: tuple[str, ...], prefix: str = "") -> None:
    """Raises ``InvalidRequest`` for one that is not known."""
    for field in value:
        if field not in known:
            near = difflib.get_close_matches(str(field), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise InvalidRequest(f"{prefix}{field}", f"is no field{hint}")

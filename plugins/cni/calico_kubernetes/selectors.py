"""Label selectors of Kubernetes → ours. Both take ``NotIn`` as true where the label is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from calico_core.errors import InvalidRequest
from calico_core.model.kubernetes import (
    NAME_LABEL,
    NAMESPACE_LABEL,
    NAMESPACE_LABEL_PREFIX,
    ORCHESTRATOR,
    ORCHESTRATOR_LABEL,
    pod_label,
)
from calico_kubernetes.objects import LabelSelector, Requirement

EVERY_POD = f'{ORCHESTRATOR_LABEL} == "{ORCHESTRATOR}"'
"""Endpoints of other orchestrators, and network sets, are no pods, whatever their labels."""
LONGEST = 500_000
"""Characters of one selector; its record has to fit into a transaction of the datastore."""

# Source: syntax and character set of labels, Kubernetes documentation
_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_./-]*[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?")


def pods_of(namespace: str, pods: LabelSelector | None) -> str:
    """Pods of one namespace; all of them when nothing narrows it."""
    return _all_of(EVERY_POD, f"{NAMESPACE_LABEL} == {_quoted(namespace)}", *_terms(pods, pod_label))


def pods_in(namespaces: LabelSelector, pods: LabelSelector | None) -> str:
    """Pods of the namespaces that are selected. One whose labels are not written yet is not, whatever it must not
    have."""
    terms = [EVERY_POD, *_terms(namespaces, _namespace_label), *_terms(pods, pod_label)]
    if any(each.operator in {"NotIn", "DoesNotExist"} for each in namespaces.match_expressions or ()):
        terms.insert(1, f"has({_namespace_label(NAME_LABEL)})")
    return _all_of(*terms)


def _all_of(*terms: str) -> str:
    text = " && ".join(terms)
    if len(text) > LONGEST:
        raise InvalidRequest("selector", f"has more than {LONGEST} characters")
    return text


def _namespace_label(name: str) -> str:
    return f"{NAMESPACE_LABEL_PREFIX}{name}"


def _terms(selector: LabelSelector | None, spelled: Callable[[str], str]) -> Iterator[str]:
    if selector is None:
        return
    for name, value in sorted((selector.match_labels or {}).items()):
        yield f"{spelled(_key(name))} == {_quoted(value)}"
    for requirement in selector.match_expressions or ():
        yield _term(requirement, spelled(_key(requirement.key)))


def _term(requirement: Requirement, label: str) -> str:
    """:raises InvalidRequest: an operator that Kubernetes does not have today."""
    values = ", ".join(_quoted(value) for value in sorted(requirement.values or ()))
    match requirement.operator:
        case "In":
            # of no values: nothing can be one of them
            return f"{label} in {{{values}}}" if values else f"(has({label}) && !has({label}))"
        case "NotIn":
            return f"{label} not in {{{values}}}" if values else "all()"
        case "Exists":
            return f"has({label})"
        case "DoesNotExist":
            return f"!has({label})"
    raise InvalidRequest("matchExpressions.operator", f"{requirement.operator!r} is unknown")


def _key(name: str) -> str:
    if not _KEY.fullmatch(name):
        raise InvalidRequest("label", f"{name!r} is not the name of a label")
    return name


def _quoted(value: str) -> str:
    if not _VALUE.fullmatch(value):
        raise InvalidRequest("label", f"{value!r} is not the value of a label")
    return f'"{value}"'

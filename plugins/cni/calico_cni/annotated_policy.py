"""``policy.type: k8s-annotations``: a pod's annotation says who may reach it. Outgoing traffic is free.

The rules stand in a profile of the pod's own, which comes and goes with its endpoint. Deprecated where there are
policies, and served for clusters that have not moved yet. Source: cni specification 5.5.

::

    allow tcp from label app=web to ports 80,443; allow icmp type 8 from cidr 10.0.0.0/8; allow from label tier=front
"""

from __future__ import annotations

import re

from calico_core.errors import InvalidRequest
from calico_core.model.addresses import parse_network
from calico_core.model.kubernetes import NOT_IN_NAMES, Pod, own_profile
from calico_core.model.numbers import decimal
from calico_core.model.rules import Rule, RuleLists, parse_port_range
from calico_core.model.workloads import NewProfile

TYPE = "k8s-annotations"
ANNOTATION = "projectcalico.org/policy"
OPEN_NAMESPACE = "kube-system"

_LABEL = re.compile(r"([A-Za-z0-9/._-]+)=([A-Za-z0-9/._-]+)")
_SIDES = {"from": "src", "to": "dst"}
_FIELDS = {"ports": "ports", "label": "tag", "cidr": "net"}
_ICMP_MAX = {"type": 254, "code": 255}
_ALLOW = (Rule(action="allow"),)


def open_pod_profile(namespace: str, pod: str, interface: str) -> NewProfile:
    """Of a pod of the cluster's own: everybody may reach it."""
    name = own_profile(namespace, pod, interface)
    rules = RuleLists(id=name, inbound_rules=_ALLOW, outbound_rules=_ALLOW)
    return NewProfile(name=name, tags=(name, _namespace_tag(namespace)), rules=rules, is_own=True)


def pod_profile(pod: Pod, interface: str) -> NewProfile:
    """Without the annotation, pods of the same namespace may reach it.

    :raises InvalidRequest: naming the annotation and the rule.
    """
    namespace = pod.metadata.namespace
    name = own_profile(namespace, pod.metadata.name, interface)
    labels = (pod.metadata.labels or {}).items()
    tags = (name, _namespace_tag(namespace), *(_label_tag(namespace, key, value) for key, value in labels))
    text = (pod.metadata.annotations or {}).get(ANNOTATION)
    if text is None:
        inbound: tuple[Rule, ...] = (Rule(action="allow", src_tag=_namespace_tag(namespace)),)
    else:
        inbound = parse_annotation(text, namespace)
    rules = RuleLists(id=name, inbound_rules=inbound, outbound_rules=_ALLOW)
    return NewProfile(name=name, tags=tuple(dict.fromkeys(tags)), rules=rules, is_own=True)


def parse_annotation(text: str, namespace: str) -> tuple[Rule, ...]:
    """Empty rules are skipped: an empty annotation allows nobody.

    :raises InvalidRequest: naming the annotation and the rule.
    """
    return tuple(_Line(line, namespace).rule() for line in text.split(";") if line.strip())


class _Line:
    """One rule, read word by word."""

    def __init__(self, line: str, namespace: str) -> None:
        self._line = " ".join(line.split())
        self._words = line.split()
        self._namespace = namespace

    def rule(self) -> Rule:
        action = self._next("allow")
        if action == "deny":
            raise self._error("deny is not to be had here: what no rule allows is denied; leave it out")
        if action != "allow":
            raise self._error(f"begins with {action!r}, not with allow")
        matches: dict[str, object] = {}
        protocol = self._words.pop(0) if self._words and self._words[0] in {"tcp", "udp", "icmp"} else ""
        if protocol:
            matches["protocol"] = protocol
        if protocol == "icmp":
            self._read_icmp(matches)
        for side in ("from", "to"):
            if self._words and self._words[0] == side:
                self._words.pop(0)
                self._read_side(side, protocol, matches)
        if self._words:
            raise self._error(f"{self._words[0]!r} is not expected there")
        try:
            return Rule(action="allow", **matches)  # type: ignore[arg-type]  # named and checked one by one
        except ValueError as error:
            raise self._error(str(error)) from error

    def _read_icmp(self, matches: dict[str, object]) -> None:
        for word in ("type", "code"):
            if not self._words or self._words[0] != word:
                return
            self._words.pop(0)
            text = self._next(f"a number after {word}")
            number = decimal(text)
            if number is None or number > _ICMP_MAX[word]:
                raise self._error(f"{text!r} is not an ICMP {word} from 0 to {_ICMP_MAX[word]}")
            matches[f"icmp_{word}"] = number

    def _read_side(self, side: str, protocol: str, matches: dict[str, object]) -> None:
        known = ("ports", "label", "cidr") if protocol in {"tcp", "udp"} else ("label", "cidr")
        found = False
        while self._words and self._words[0] in _FIELDS:
            word = self._words.pop(0)
            key = f"{_SIDES[side]}_{_FIELDS[word]}"
            if word not in known:
                raise self._error(f"{word} needs tcp or udp")
            if key in matches:
                raise self._error(f"{word} twice after {side}")
            matches[key] = self._value(word, self._next(f"a value after {word}"))
            found = True
        if not found:
            raise self._error(f"{side} is followed by none of {', '.join(known)}")

    def _value(self, word: str, text: str) -> object:
        if word == "label":
            match = _LABEL.fullmatch(text)
            if match is None:
                raise self._error(f"{text!r} is not KEY=VALUE of letters, digits, '/', '.', '_' and '-'")
            return _label_tag(self._namespace, match[1], match[2])
        try:
            if word == "cidr":
                return parse_network(text, field="cidr")
            return tuple(_port(each) for each in text.split(","))
        except InvalidRequest as error:
            raise self._error(str(error)) from error

    def _next(self, wanted: str) -> str:
        if not self._words:
            raise self._error(f"ends where {wanted} is expected")
        return self._words.pop(0)

    def _error(self, reason: str) -> InvalidRequest:
        return InvalidRequest(ANNOTATION, f"in {self._line!r}: {reason}")


def _port(text: str) -> int | str:
    low, high = parse_port_range(text)
    return low if low == high else text


def _namespace_tag(namespace: str) -> str:
    return escape_tag(f"namespace={namespace}")


def _label_tag(namespace: str, key: str, value: str) -> str:
    return escape_tag(f"{namespace}/{key}={value}")


def escape_tag(text: str) -> str:
    """As the first reference plugin spelled a label in a tag."""
    return NOT_IN_NAMES.sub("_", text.replace("_", "__"))

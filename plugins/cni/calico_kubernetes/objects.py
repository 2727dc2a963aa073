"""NetworkPolicy (networking.k8s.io/v1) as the API writes it, and everything the controller looks at in one value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from calico_core.model.kubernetes import Metadata, Namespace, Pod, ServiceAccount


class _Object(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A part of a policy. Lists may come as null; where absent and empty differ in meaning, None is absent. A field we
    do not know may narrow the part that it stands in, so it is refused."""


class Requirement(_Object, frozen=True):
    key: str
    operator: str
    values: tuple[str, ...] | None = None


class LabelSelector(_Object, frozen=True):
    match_labels: dict[str, str] | None = None
    match_expressions: tuple[Requirement, ...] | None = None


class IpBlock(_Object, frozen=True):
    cidr: str
    excepted: tuple[str, ...] | None = msgspec.field(default=None, name="except")


class Peer(_Object, frozen=True):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IpBlock | None = None


class Port(_Object, frozen=True):
    """``port``: a number or the name of a container's port; None: all of the protocol."""

    port: int | str | None = None
    protocol: str | None = None
    end_port: int | None = None


class IngressRule(_Object, frozen=True):
    peers: tuple[Peer, ...] | None = msgspec.field(default=None, name="from")
    ports: tuple[Port, ...] | None = None


class EgressRule(_Object, frozen=True):
    peers: tuple[Peer, ...] | None = msgspec.field(default=None, name="to")
    ports: tuple[Port, ...] | None = None


class NetworkPolicySpec(_Object, frozen=True):
    pod_selector: LabelSelector | None = None
    ingress: tuple[IngressRule, ...] | None = None
    egress: tuple[EgressRule, ...] | None = None
    policy_types: tuple[str, ...] | None = None


class PodsOfSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What of a spec says which pods it is for, whatever else it holds."""

    pod_selector: LabelSelector | None = None


class NetworkPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """``spec`` is decoded with the policy's conversion: one that cannot be must not keep the others from being read."""

    metadata: Metadata = Metadata()
    spec: msgspec.Raw = msgspec.Raw(b"{}")

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "spec", self.spec.copy())  # not with the whole answer that it came in


Name = tuple[str, str]
"""Namespace (empty for objects outside of any) and name."""


class Snapshot(NamedTuple):
    """The API's objects at about one time."""

    namespaces: Mapping[Name, Namespace] = {}
    pods: Mapping[Name, Pod] = {}
    service_accounts: Mapping[Name, ServiceAccount] = {}
    policies: Mapping[Name, NetworkPolicy] = {}

"""Pools of addresses. Source: datastore specification 4.5 and ipam specification 6."""

from __future__ import annotations

from typing import Literal

import msgspec
from netaddr import IPNetwork

from calico_core.errors import InvalidSelector
from calico_core.model.record import Record
from calico_core.model.selectors import Labels, parse_selector

BLOCK_PREFIX = {4: 26, 6: 122}
BLOCK_SIZES = {4: (20, 32), 6: (116, 128)}
"""The shortest and the longest prefix of a block."""
Use = Literal["Workload", "Tunnel"]
"""What addresses are asked for here; a pool may name others."""
_USES: tuple[str, ...] = ("Workload", "Tunnel")
"""Of a pool that does not say."""


class Pool(Record, frozen=True):
    """An administrator's CIDR. ``masquerade`` is nat-outgoing; ``ipip`` the tunnel device of an IPIP pool;
    ``ipam`` false means announced and masqueraded only; ``disabled`` means no new addresses. ``node_selector`` tells
    by labels which hosts choose from it automatically; empty: all. ``allowed_uses``: what its addresses are for; none
    named: workloads and tunnels. Other uses, as ``LoadBalancer``, are kept, and nothing here assigns for them."""

    cidr: IPNetwork
    ipip: str | None = None
    masquerade: bool = False
    ipam: bool = True
    disabled: bool = False
    ipip_mode: Literal["always", "cross-subnet", ""] = ""
    vxlan_mode: Literal["always", "cross-subnet", ""] = ""
    disable_bgp_export: bool = msgspec.field(default=False, name="disableBGPExport")
    block_size: int | None = msgspec.field(default=None, name="blockSize")
    node_selector: str = msgspec.field(default="", name="nodeSelector")
    allowed_uses: tuple[str, ...] = _USES

    def __post_init__(self) -> None:
        low, high = BLOCK_SIZES[self.cidr.version]
        if self.block_size is not None and not low <= self.block_size <= high:
            raise ValueError(f"blockSize: a prefix length from {low} to {high} for IPv{self.cidr.version}")
        if self.ipam and self.cidr.prefixlen > self.block_prefix:
            raise ValueError(f"cidr: {self.cidr} is smaller than one block (/{self.block_prefix})")
        if self.cidr.version == 6 and (self.ipip or self.ipip_mode):
            raise ValueError("ipip: IPIP carries IPv4 only")
        if (self.ipip or self.ipip_mode) and self.vxlan_mode:
            raise ValueError("vxlan_mode: a pool is encapsulated by IPIP or by VXLAN, not by both")
        try:
            parse_selector(self.node_selector)
        except InvalidSelector as error:
            raise ValueError(f"nodeSelector: {error}") from error

    @property
    def block_prefix(self) -> int:
        """Prefix length of its blocks: /26 and /122 unless said otherwise."""
        return self.block_size if self.block_size is not None else BLOCK_PREFIX[self.cidr.version]

    @property
    def is_assignable(self) -> bool:
        return self.ipam and not self.disabled

    @property
    def uses(self) -> tuple[str, ...]:
        """What its addresses are for, whether it says so or not."""
        return self.allowed_uses or _USES

    def gives(self, use: Use) -> bool:
        """Whether it gives new addresses for this."""
        return self.is_assignable and use in self.uses

    def is_for(self, labels: Labels) -> bool:
        """Whether a host with these labels chooses from it without being asked to."""
        return parse_selector(self.node_selector).matches(labels)

    @property
    def is_encapsulated(self) -> bool:
        return bool(self.ipip or self.ipip_mode or self.vxlan_mode)

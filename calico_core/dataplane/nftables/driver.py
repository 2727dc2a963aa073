"""The nftables dataplane: one table of ours for policy, routes to workloads, nothing of anybody else's.

Policy is one transaction of each apply. Source: felix specification 6–8 and 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.dataplane.denials import Origins
from calico_core.dataplane.kernel_dataplane import KernelDataplane, check_options
from calico_core.dataplane.nftables.policy_table import PolicyTable

if TYPE_CHECKING:
    from calico_core.dataplane.reconcile import Table
    from calico_core.interfaces.dataplane import DataplaneOptions, RuleCount


class NftablesDataplane(KernelDataplane[PolicyTable]):
    """A failure of ``table inet calico``: the kernel took nothing of the batch."""

    def __init__(self, options: DataplaneOptions, namespace_fd: int | None = None) -> None:
        check_options(options)
        origins = Origins()
        super().__init__(options, namespace_fd, PolicyTable(options, namespace_fd, origins), origins)

    @classmethod
    def open(cls, options: DataplaneOptions) -> NftablesDataplane:
        return cls(options)

    def rule_counts(self) -> tuple[RuleCount, ...]:
        return self._policy.rule_counts()

    def observe(self) -> Table | None:
        """The policy table as the kernel holds it; for diagnosis and tests."""
        return self._policy.observe()

    @property
    def desired(self) -> Table:
        """The policy table as it is wanted."""
        return self._policy.desired

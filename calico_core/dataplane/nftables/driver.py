"""The nftables dataplane: one table of ours for policy, routes to workloads, nothing of anybody else's.

Policy is one transaction of each apply. Source: felix specification 6–8 and 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.claims import Down
from calico_core.dataplane.denials import Origins
from calico_core.dataplane.kernel_dataplane import KernelDataplane
from calico_core.dataplane.nftables import removal
from calico_core.dataplane.nftables.policy_table import PolicyTable
from calico_core.dataplane.option_checks import check_options

if TYPE_CHECKING:
    from calico_core.dataplane.reconcile import Table
    from calico_core.interfaces.dataplane import ApplyReport, DataplaneOptions, Failure, RuleCount
    from calico_core.model.hoststate import HostChanges


class NftablesDataplane(KernelDataplane[PolicyTable]):
    """A failure of ``table inet calico``: the kernel took nothing of the batch."""

    def __init__(self, options: DataplaneOptions, namespace_fd: int | None = None) -> None:
        check_options(options)
        origins, down = Origins(), Down()
        super().__init__(options, namespace_fd, PolicyTable(options, namespace_fd, origins, down), origins, down)

    @classmethod
    def open(cls, options: DataplaneOptions) -> NftablesDataplane:
        return cls(options)

    def apply(self, changes: HostChanges) -> ApplyReport:
        report = super().apply(changes)
        if not changes.is_complete:
            return report
        changed, failures = self._policy.live_beside_docker()
        return _more(report, len(changed), failures)

    def resync(self) -> ApplyReport:
        report = super().resync()
        if not self._is_complete:
            return report
        changed, failures = self._policy.live_beside_docker()
        report = msgspec.structs.replace(report, healed=(*report.healed, *changed))
        return _more(report, len(changed), failures)

    def rule_counts(self) -> tuple[RuleCount, ...]:
        return self._policy.rule_counts()

    @staticmethod
    def remove_reference(namespace_fd: int | None = None) -> tuple[str, ...]:
        """Remove the tables that the reference agent left. Gives what was removed.

        :raises KernelRefused: one of them stays.
        """
        return removal.remove_reference(namespace_fd)

    @classmethod
    def missing(cls) -> str:
        if not removal.is_supported():
            return "the kernel has no nftables (module nf_tables)"
        return ""

    def _other_kind_stands(self) -> bool:
        from calico_core.dataplane.iptables import removal as iptables

        return not self._policy.stands() and iptables.stands(self._namespace_fd)

    def _remove_other_kinds(self) -> None:
        from calico_core.dataplane.iptables import removal as iptables

        iptables.remove_ours(self._namespace_fd)

    def observe(self) -> Table | None:
        """The policy table as the kernel holds it; for diagnosis and tests."""
        return self._policy.observe()

    @property
    def desired(self) -> Table:
        """The policy table as it is wanted."""
        return self._policy.desired


def _more(report: ApplyReport, changes: int, failures: tuple[Failure, ...]) -> ApplyReport:
    return msgspec.structs.replace(report, changes=report.changes + changes, failures=(*report.failures, *failures))

"""The iptables dataplane: chains and address sets of ours for policy, routes to workloads, nothing of anybody else's.

Unlike nftables, a batch is one transaction a table and family, and set members change before the rules do.
Source: felix specification 5–8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.dataplane.claims import Down
from calico_core.dataplane.denials import Origins
from calico_core.dataplane.iptables import removal
from calico_core.dataplane.iptables.policy_tables import PolicyTables
from calico_core.dataplane.iptables.tools import Tools
from calico_core.dataplane.kernel_dataplane import KernelDataplane
from calico_core.dataplane.nftables import removal as nftables
from calico_core.dataplane.option_checks import check_options
from calico_core.errors import InvalidRequest, ToolFailed

if TYPE_CHECKING:
    from calico_core.dataplane.iptables.tools import Backend
    from calico_core.interfaces.dataplane import DataplaneOptions, RuleCount

#: An interface's name with the wildcard of iptables behind it must still be one.
_PREFIX_LENGTH = 14


class IptablesDataplane(KernelDataplane[PolicyTables]):
    """``backend`` None: the one that the host's ``iptables`` stands for."""

    def __init__(
        self, options: DataplaneOptions, namespace_fd: int | None = None, backend: Backend | None = None
    ) -> None:
        check_options(options)
        for prefix in options.interface_prefixes:
            if len(prefix) > _PREFIX_LENGTH:
                raise InvalidRequest("interface_prefixes", f"{prefix!r} must have at most {_PREFIX_LENGTH} characters")
        origins, down = Origins(), Down()
        policy = PolicyTables(options, Tools(namespace_fd, backend), origins, down)
        super().__init__(options, namespace_fd, policy, origins, down)

    @classmethod
    def open(cls, options: DataplaneOptions) -> IptablesDataplane:
        return cls(options)

    @staticmethod
    def remove_reference(namespace_fd: int | None = None) -> tuple[str, ...]:
        """Remove what the reference agents left, in either backend. Gives what was removed.

        :raises ToolFailed: something could not be removed.
        """
        return removal.remove_reference(namespace_fd)

    @classmethod
    def missing(cls) -> str:
        try:
            tools = Tools()
            tools.save(4)
            tools.save_sets()
        except ToolFailed as error:
            return f"iptables with ipset does not work here (modules ip_tables or nf_tables, ip_set): {error}"
        return ""

    def _other_kind_stands(self) -> bool:
        return nftables.stands(self._namespace_fd)

    def _remove_other_kinds(self) -> None:
        nftables.remove_ours(self._namespace_fd)

    def rule_counts(self) -> tuple[RuleCount, ...]:
        return self._policy.rule_counts()

    def differences(self) -> list[str]:
        """Chains, jumps and sets of ours that are not as wanted; for diagnosis and tests."""
        return self._policy.differences()

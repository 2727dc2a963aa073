"""The ends of rules: marks, denials, log lines; as the options want them and as the table allows them.

A denial may be several rules: one that tells the NFLOG group, one that logs, one that decides. Source: felix
specification 6; iptables-extensions(8). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.dataplane.iptables.names import FILTER
from calico_core.model.rules import clean_log_prefix

if TYPE_CHECKING:
    from calico_core.dataplane.denials import Origins
    from calico_core.interfaces.dataplane import DataplaneOptions, DenialOrigin

DROP, ACCEPT, RETURN = "-j DROP", "-j ACCEPT", "-j RETURN"
_REJECT = {4: "-j REJECT --reject-with icmp-admin-prohibited", 6: "-j REJECT --reject-with icmp6-adm-prohibited"}
_NOTICE, _WARNING = 5, 4
_DROP_PREFIX = "calico-drop"
#: Denied packets a second and rule that are told to the NFLOG group: a flood is not to cost more than it says.
_TOLD_A_SECOND = 100
#: xt_limit knows no finer step.
_MOST_A_SECOND = 10_000
_DISABLED = "POLICY IS SWITCHED OFF"


class Verdicts:
    """Of one table and family."""

    def __init__(self, options: DataplaneOptions, origins: Origins, family: int, table: str = FILTER) -> None:
        self._options, self._origins, self._family = options, origins, family
        # only the filter table can answer
        self._can_reject = table == FILTER
        accept, rest = _lowest(options.mark_mask)
        passed, _ = _lowest(rest)
        self.set_accept = f"-j MARK --set-xmark {accept:#x}/{accept:#x}"
        self.set_pass = f"-j MARK --set-xmark {passed:#x}/{passed:#x}"
        self.if_accepted = f"-m mark --mark {accept:#x}/{accept:#x}"
        self.if_passed = f"-m mark --mark {passed:#x}/{passed:#x}"
        self.if_not_passed = f"-m mark --mark 0x0/{passed:#x}"
        self.clear_pass = f"-j MARK --set-xmark 0x0/{passed:#x}"
        self.clear_marks = f"-j MARK --set-xmark 0x0/{accept | passed:#x}"

    def deny(self, match: str, origin: DenialOrigin, *, note: str = "", is_reject: bool = False) -> list[str]:
        """What policy denies. ``note`` is for people."""
        override = self._options.drop_override
        rules = self._told(match, origin)
        if override.startswith("LOG-and-"):
            rules.append(self.log(match, _DROP_PREFIX, level=_WARNING))
        if override.endswith("ACCEPT"):
            return [*rules, _join(match, ACCEPT, f"{_DISABLED}: {note}" if note else _DISABLED)]
        rejects = self._can_reject and (is_reject or self._options.deny_action == "REJECT")
        return [*rules, _join(match, _REJECT[self._family] if rejects else DROP, note)]

    def drop(self, match: str, origin: DenialOrigin, *, note: str = "") -> list[str]:
        """What passes under no policy: forged, or of no connection. No option changes it."""
        return [*self._told(match, origin), _join(match, DROP, note)]

    def log(self, match: str, prefix: str, *, level: int = _NOTICE) -> str:
        limit = ""
        if self._options.log_rate > 0:
            rate, burst = min(self._options.log_rate, _MOST_A_SECOND), max(1, self._options.log_burst)
            limit = f"-m limit --limit {rate}/sec --limit-burst {burst} "
        return _join(match, f'{limit}-j LOG --log-prefix "{clean_log_prefix(prefix)}: " --log-level {level}')

    def _told(self, match: str, origin: DenialOrigin) -> list[str]:
        """Copies of what is denied, for those who listen to the group."""
        if not self._options.denied_group:
            return []
        limit = f"-m limit --limit {_TOLD_A_SECOND}/sec --limit-burst {_TOLD_A_SECOND}"
        target = f'-j NFLOG --nflog-prefix "{self._origins.prefix(origin)}" --nflog-group {self._options.denied_group}'
        return [_join(match, f"{limit} {target}")]


def _lowest(mask: int) -> tuple[int, int]:
    """The lowest bit of a mask, and the others."""
    bit = mask & -mask
    return bit, mask ^ bit


def _join(match: str, target: str, note: str = "") -> str:
    text = f"{match} {target}" if match else target
    return f"{text} # {note}" if note else text

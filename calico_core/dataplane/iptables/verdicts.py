"""The ends of rules: marks, denials, log lines; as the options want them and as the table allows them.

A denial may be several rules: one that logs, one that tells the NFLOG group, one that decides. Whether, and which bits
are the marks, :mod:`denials` decides for both drivers. Source: felix specification 6; iptables-extensions(8). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.dataplane.denials import DENIED_BURST, DENIED_PACKETS_A_SECOND, SNAPSHOT_BYTES, denial, marks
from calico_core.dataplane.iptables.names import FILTER, MANGLE
from calico_core.interfaces.dataplane import DenialOrigin
from calico_core.model.rules import clean_log_prefix

if TYPE_CHECKING:
    from calico_core.dataplane.denials import Origins
    from calico_core.interfaces.dataplane import DataplaneOptions

DROP, ACCEPT, RETURN = "-j DROP", "-j ACCEPT", "-j RETURN"
_REJECT = {4: "-j REJECT --reject-with icmp-admin-prohibited", 6: "-j REJECT --reject-with icmp6-adm-prohibited"}
_NOTICE = 5
#: xt_limit knows no finer step.
_MOST_A_SECOND = 10_000
#: xt_limit refuses a burst that takes much longer than a day to come back.
_LONGEST_BURST_S = 86400
_UNITS = {"second": ("sec", 1), "minute": ("minute", 60), "hour": ("hour", 3600), "day": ("day", 86400)}


class Verdicts:
    """Of one table and family."""

    def __init__(self, options: DataplaneOptions, origins: Origins, family: int, table: str = FILTER) -> None:
        self._options, self._origins, self._family = options, origins, family
        # only the filter table can answer
        self._can_reject = table == FILTER
        words = {FILTER: options.filter_allow, MANGLE: options.mangle_allow}
        #: What becomes of what policy of this table allows.
        self.allow = {"ACCEPT": ACCEPT, "RETURN": RETURN}[words.get(table, "ACCEPT")]
        accept, passed = marks(options.mark_mask)
        self.set_accept = f"-j MARK --set-xmark {accept:#x}/{accept:#x}"
        self.set_pass = f"-j MARK --set-xmark {passed:#x}/{passed:#x}"
        self.if_accepted = f"-m mark --mark {accept:#x}/{accept:#x}"
        self.if_passed = f"-m mark --mark {passed:#x}/{passed:#x}"
        self.if_not_passed = f"-m mark --mark 0x0/{passed:#x}"
        self.if_undecided = f"-m mark --mark 0x0/{accept | passed:#x}"
        self.clear_pass = f"-j MARK --set-xmark 0x0/{passed:#x}"
        self.clear_marks = f"-j MARK --set-xmark 0x0/{accept | passed:#x}"

    def deny(self, match: str, origin: DenialOrigin, *, note: str = "", is_reject: bool = False) -> list[str]:
        """What policy denies. ``note`` is for people."""
        how = denial(self._options, is_reject=is_reject)
        rules = [self.log(match)] if how.is_logged else []
        rules += self._told(match, origin) if how.is_told else []
        if how.verdict == "accept":
            return [*rules, _join(match, ACCEPT, how.comment(note))]
        rejects = self._can_reject and how.verdict == "reject"
        return [*rules, _join(match, _REJECT[self._family] if rejects else DROP, note)]

    def drop(self, match: str, reason: str) -> list[str]:
        """What no policy can allow: a spoofed source, an unknown endpoint. No option changes it."""
        return [*self._told(match, DenialOrigin(reason=reason)), _join(match, DROP, reason)]

    def log(self, match: str, prefix: str | None = None) -> str:
        """To the kernel's log. None: with the host's prefix."""
        words = clean_log_prefix(self._options.log_prefix if prefix is None else prefix)
        limit = ""
        options = self._options
        if options.log_rate > 0:
            word, seconds = _UNITS[options.log_unit]
            rate = min(options.log_rate, _MOST_A_SECOND * seconds)
            burst = max(1, min(options.log_burst, _LONGEST_BURST_S * rate // seconds))
            limit = f"-m limit --limit {rate}/{word} --limit-burst {burst} "
        return _join(match, f'{limit}-j LOG --log-prefix "{words}: " --log-level {_NOTICE}')

    def _told(self, match: str, origin: DenialOrigin) -> list[str]:
        """Copies of what is denied, for those who listen to the group."""
        if not self._options.denied_group:
            return []
        limit = f"-m limit --limit {DENIED_PACKETS_A_SECOND}/sec --limit-burst {DENIED_BURST}"
        group, prefix = self._options.denied_group, self._origins.prefix(origin)
        target = f'-j NFLOG --nflog-prefix "{prefix}" --nflog-group {group} --nflog-size {SNAPSHOT_BYTES}'
        return [_join(match, f"{limit} {target}")]


def _join(match: str, target: str, note: str = "") -> str:
    text = f"{match} {target}" if match else target
    return f"{text} # {note}" if note else text

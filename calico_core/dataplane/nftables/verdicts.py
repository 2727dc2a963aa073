"""What becomes of a packet, as nft text: the words for allow, pass, deny and log under the options of this host.

Allow and pass set a mark and return. What a denial is to do, and which bits are the marks, :mod:`denials` decides for
both drivers. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.dataplane.denials import DENIED_BURST, DENIED_PACKETS_A_SECOND, SNAPSHOT_BYTES, denial, marks
from calico_core.interfaces.dataplane import DenialOrigin
from calico_core.model.rules import clean_log_prefix

if TYPE_CHECKING:
    from calico_core.dataplane.denials import Denial, Origins
    from calico_core.interfaces.dataplane import DataplaneOptions

ACCEPT = "counter accept"
DROP = "counter drop"
REJECT = "counter reject with icmpx admin-prohibited"
_ENDS = {"accept": ACCEPT, "drop": DROP, "reject": REJECT}
INVALID_CHAIN = "invalid"
KNOWN_ACCEPT = "ct state established,related accept"
"""A mask and a comparison: on the way of every packet, a look-up in a map costs twice that."""


class Verdicts:
    """One host's. ``origins`` learns of every denial that is told."""

    def __init__(self, options: DataplaneOptions, origins: Origins) -> None:
        self._options, self._origins = options, origins
        accepted, passed = marks(options.mark_mask)
        self.allow = f"counter meta mark set meta mark | {accepted:#010x} return"
        self.pass_on = f"counter meta mark set meta mark | {passed:#010x} return"
        self.if_accepted = f"meta mark & {accepted:#010x} != 0"
        self.if_accepted_return = f"{self.if_accepted} return"
        self.if_undecided = f"meta mark & {accepted | passed:#010x} == 0"
        self.if_not_passed = f"meta mark & {passed:#010x} == 0"
        self.clear_pass = f"meta mark set meta mark & {0xFFFFFFFF ^ passed:#010x}"
        self.clear_marks = f"meta mark set meta mark & {0xFFFFFFFF ^ accepted ^ passed:#010x}"
        self._denial, self._refusal = denial(options, is_reject=False), denial(options, is_reject=True)

    def known(self, passing: str) -> str:
        """What tracking knows of is not asked again. ``passing``: what becomes of it then."""
        unconnected = f", invalid : goto {INVALID_CHAIN}" if self._options.drops_invalid else ""
        return f"ct state vmap {{ established : {passing}, related : {passing}{unconnected} }}"

    def unconnected(self) -> list[str]:
        """What belongs to no connection, where :data:`KNOWN_ACCEPT` stands before it."""
        return [f"ct state invalid goto {INVALID_CHAIN}"] if self._options.drops_invalid else []

    def log(self, prefix: str | None = None) -> str:
        """To the kernel's log. None: with the host's prefix."""
        options = self._options
        rate = f"{options.log_rate}/{options.log_unit}"
        limit = f"limit rate {rate} burst {options.log_burst} packets " if options.log_rate else ""
        words = clean_log_prefix(options.log_prefix if prefix is None else prefix)
        return f'{limit}log prefix "{words}: " level notice'

    def deny(self, match: str, origin: DenialOrigin, note: str = "") -> list[str]:
        """A denial of policy: by a rule, or because nothing allowed."""
        return self._end(match, self._denial, origin, note)

    def refuse(self, match: str, origin: DenialOrigin) -> list[str]:
        """A denial that answers whatever the host does otherwise."""
        return self._end(match, self._refusal, origin, "")

    def drop(self, match: str, reason: str) -> list[str]:
        """What no policy can allow: a spoofed source, an unknown endpoint."""
        return [*self._tell(match, DenialOrigin(reason=reason)), f"{match} {DROP} # {reason}".lstrip()]

    def _end(self, match: str, how: Denial, origin: DenialOrigin, note: str) -> list[str]:
        lines = [f"{match} {self.log()}".lstrip()] if how.is_logged else []
        lines += self._tell(match, origin) if how.is_told else []
        comment = how.comment(note)
        return [*lines, f"{match} {_ENDS[how.verdict]}{f' # {comment}' if comment else ''}".lstrip()]

    def _tell(self, match: str, origin: DenialOrigin) -> list[str]:
        group = self._options.denied_group
        if not group:
            return []
        limit = f"limit rate {DENIED_PACKETS_A_SECOND}/second burst {DENIED_BURST} packets"
        told = f'log prefix "{self._origins.prefix(origin)}" group {group} snaplen {SNAPSHOT_BYTES}'
        return [f"{match} {limit} {told}".lstrip()]

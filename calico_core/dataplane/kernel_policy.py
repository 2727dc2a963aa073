"""What a driver of the kernel brings of its own: policy, programmed its way, and what it says of each change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from calico_core.interfaces.dataplane import Failure, Figure

if TYPE_CHECKING:
    from calico_core.model.hoststate import HostChanges, HostState


class TableReport(msgspec.Struct, frozen=True, kw_only=True):
    """``healed``: differences found that were not ours. ``lost``: addresses (family, value) that an interface had and
    no longer has. ``path``: how it went to the kernel, in the driver's words."""

    changes: int = 0
    failures: tuple[Failure, ...] = ()
    healed: tuple[str, ...] = ()
    lost: frozenset[tuple[int, int]] = frozenset()
    path: str = "none"


class Policy(Protocol):
    """The policy of one network namespace in the kernel. One thread."""

    def ensure_closed(self) -> None:
        """The base with nobody in it, unless it stands."""

    def follow(self, changes: HostChanges, state: HostState) -> TableReport:
        """``state`` has taken in the batch."""

    def resync(self) -> TableReport:
        """Compare with the kernel, and repair."""

    def purge(self) -> None:
        """Remove all of it."""

    def figures(self) -> tuple[Figure, ...]:
        """For metrics; any thread."""

    def close(self) -> None:
        """Free what it holds in this process."""

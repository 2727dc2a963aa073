"""One call as the machinery of this package carries it: alone, or in one transaction with others that wait.

A call that shares a transaction must not suffer from the others: whatever refuses it alone makes it go alone, where
its own caller hears of it. Source: ipam specification 10, point 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.interfaces.ipam import Companion, MakeCompanion

if TYPE_CHECKING:
    from collections.abc import Iterable

    from calico_core.ipam.steps import Plan, Planner


class Job:
    """Made by the caller's thread, settled by whichever thread leads. ``handles`` are all those it may touch; None
    when that is not known beforehand: it goes alone from the start."""

    def __init__(
        self,
        versions: Iterable[int],
        planner: Planner,
        make_companion: MakeCompanion | None,
        *,
        handles: Iterable[str] | None,
        what: str,
        deadline_s: float,
    ) -> None:
        self.versions = frozenset(versions)
        self.planner = planner
        self.make_companion = make_companion
        self.handles = frozenset(handles or ())
        self.what = what
        self.deadline_s = deadline_s
        self.goes_alone = handles is None
        self.plan: Plan | None = None
        self.error: Exception | None = None

    @property
    def is_settled(self) -> bool:
        return self.plan is not None or self.error is not None

    def companion(self, plan: Plan) -> Companion:
        return self.make_companion(plan.addresses) if self.make_companion else Companion()

    def may_join(self, others: Iterable[Job]) -> bool:
        """One handle must not be decided about twice in a transaction."""
        return not self.goes_alone and all(self.handles.isdisjoint(other.handles) for other in others)

"""What the workload service asks of the agent: to say when a record's policy is in the kernel."""

from __future__ import annotations

from typing import Protocol

from calico_core.model.keys import WorkloadEndpointKey


class PolicyGate(Protocol):
    """Implemented by the agent; any thread may wait."""

    def wait_programmed(self, key: WorkloadEndpointKey, revision: int, timeout_s: float) -> bool:
        """True once the kernel enforces the policy of the record written at ``revision`` (or a later one); False
        when the time is over or programming failed."""


class NoAgent:
    """In a one-shot process nobody programs policy: the kernel keeps unknown interfaces closed until the runtime
    is back."""

    def wait_programmed(self, key: WorkloadEndpointKey, revision: int, timeout_s: float) -> bool:  # noqa: ARG002
        return False

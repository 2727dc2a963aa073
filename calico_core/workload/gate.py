"""What the workload service asks of the agent: to say when a record's policy is in the kernel."""

from __future__ import annotations

from typing import Protocol

from calico_core.model.keys import WorkloadEndpointKey


class PolicyGate(Protocol):
    """Implemented by the agent; any thread may wait."""

    def wait_programmed(self, key: WorkloadEndpointKey, revision: int, timeout_s: float) -> bool:
        """True once the kernel enforces the policy of the record written at ``revision`` (or a later one); False
        when the time is over or programming failed."""

    def knows_ready(self) -> bool:
        """True when the datastore is known to be ready; False means "look yourself"."""

    def knows_profile(self, name: str) -> bool:
        """True when the profile is known to exist; False means "look yourself". What is known may be milliseconds
        old: an endpoint whose profile has just been deleted is closed, as it would be a moment later."""


class NoAgent:
    """In a one-shot process nobody programs policy: the kernel keeps unknown interfaces closed until the runtime
    is back."""

    def wait_programmed(self, key: WorkloadEndpointKey, revision: int, timeout_s: float) -> bool:  # noqa: ARG002
        return False

    def knows_ready(self) -> bool:
        return False

    def knows_profile(self, name: str) -> bool:  # noqa: ARG002
        return False

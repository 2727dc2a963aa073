"""Random sequences of batches on the real kernel: it holds what a fresh build of the same state would hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calico_core.dataplane.nftables.builder import TableBuilder
from calico_core.model.hoststate import HostState
from tests.doubles.host_states import host_states, step, whole

if TYPE_CHECKING:
    from typing import Any

pytestmark = pytest.mark.needs_root


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(states=st.lists(host_states(), min_size=2, max_size=4))
def test_kernel_follows_any_sequence(lab: Any, states: list[HostState]) -> None:
    kept = HostState()
    changes = whole(states[0])
    for target in [*states[1:], states[0]]:
        kept.update(changes)
        report = lab.dataplane.apply(changes)
        assert report.failures == ()
        standing = lab.dataplane.observe()
        assert standing is not None
        assert TableBuilder.of(lab.options, kept).table.differences(standing) == []
        assert lab.dataplane.apply(step(kept, kept)).changes == 0
        changes = step(kept, target)

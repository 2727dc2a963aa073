"""A slice of the packet oracle: random policies, three opinions on every packet. ``nox -s oracle`` asks for longer."""

from __future__ import annotations

import shutil

import pytest

from tests.campaigns.oracle import campaign

pytestmark = pytest.mark.needs_root


@pytest.mark.parametrize(
    "dataplane",
    [
        "nftables",
        pytest.param(
            "iptables",
            marks=pytest.mark.skipif(
                shutil.which("iptables") is None or shutil.which("ipset") is None,
                reason="iptables and ipset are not installed",
            ),
        ),
    ],
)
def test_naive_reading_evaluator_and_kernel_agree(dataplane: str) -> None:
    tally = campaign.run(cases=80, seed=20, dataplane=dataplane)
    assert tally.differences == []
    assert tally.outcomes["allow"] > 1000
    assert tally.outcomes["deny"] > 1000

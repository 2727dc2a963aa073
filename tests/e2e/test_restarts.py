"""A slice of the restarts campaign; ``nox -s restarts`` asks for more of them."""

from __future__ import annotations

import pytest

from tests.campaigns import restarts

pytestmark = pytest.mark.needs_root


def test_restart_kill_and_upgrade_lose_nothing_and_let_nothing_pass() -> None:
    result = restarts.run(count=4, dataplane="nftables", ways=("clean", "kill", "anew", "upgrade"))
    assert result.last_line == "4 restarts, 0 lost, 0 wrongly passed", result.losses
    assert result.sent > 2000
    assert result.forbidden > 2000
    assert result.tcp_bytes > 0


def test_restarts_of_the_iptables_driver() -> None:
    result = restarts.run(count=2, dataplane="iptables", ways=("kill", "upgrade"))
    assert result.last_line == "2 restarts, 0 lost, 0 wrongly passed", result.losses


def test_a_switch_of_the_dataplane_and_back() -> None:
    result = restarts.run(count=2, dataplane="nftables", ways=("driver",))
    assert result.last_line == "2 restarts, 0 lost, 0 wrongly passed", result.losses

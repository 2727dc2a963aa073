from __future__ import annotations

import pytest

from calico_core.dataplane.linux.link_messages import add_veth, set_link
from calico_core.dataplane.linux.prefix import parse_prefix
from calico_core.dataplane.linux.route_messages import RTPROT_STATIC, Route, add_route, workload_route
from calico_core.dataplane.linux.routes import apply_routes, observe, plan_routes

pytestmark = pytest.mark.needs_root


@pytest.fixture
def indexes(host) -> list[int]:
    """Two workload interfaces and one that is not, all up."""
    names = ("cali1", "cali2", "eth9")
    for name in names:
        host.route_socket.execute(
            add_veth(name, name + "p"), set_link(name, is_up=True), set_link(name + "p", is_up=True)
        )
    return [host.route_socket.find_link(name).index for name in names]


def test_the_kernel_follows_the_plan_and_a_second_one_is_empty(host, indexes):
    first, second, other = indexes
    kept = workload_route(parse_prefix("10.0.0.1"), first)
    moved_from, moved_to = (workload_route(parse_prefix("10.0.0.2"), index) for index in (first, second))
    moved_v6_from, moved_v6_to = (workload_route(parse_prefix("fd00::2"), index) for index in (first, second))
    gone = workload_route(parse_prefix("fd00::3"), first)
    new = workload_route(parse_prefix("10.0.0.4"), second)
    by_hand = Route(destination=parse_prefix("10.0.0.5"), index=first, scope=253, protocol=RTPROT_STATIC)
    subnet = Route(destination=parse_prefix("10.8.0.0/24"), index=first, scope=253, protocol=RTPROT_STATIC)
    foreign = Route(destination=parse_prefix("10.0.0.6"), index=other, scope=253, protocol=RTPROT_STATIC)
    host.route_socket.execute(*map(add_route, (kept, moved_from, moved_v6_from, gone, by_hand, subnet, foreign)))
    desired = {kept, moved_to, moved_v6_to, new}

    plan = plan_routes(desired, observe(host.route_socket))
    assert set(plan.delete) == {gone}
    assert set(plan.replace) == {moved_to, moved_v6_to, new}
    assert apply_routes(host.route_socket, plan) == ()

    after = observe(host.route_socket)
    assert {route for route in after if route.protocol == 80} == desired
    assert {by_hand, subnet, foreign} <= set(after)
    assert not plan_routes(desired, after)


def test_a_device_that_went_fails_alone(host, indexes):
    lost, good = workload_route(parse_prefix("10.0.0.1"), 999), workload_route(parse_prefix("10.0.0.2"), indexes[0])
    (failure,) = apply_routes(host.route_socket, plan_routes([lost, good], ()))
    assert failure.route == lost
    assert good in observe(host.route_socket)


def test_a_deletion_that_came_too_late_is_no_failure(host, indexes):
    gone = workload_route(parse_prefix("10.0.0.1"), indexes[0])
    assert apply_routes(host.route_socket, plan_routes([], [gone])) == ()

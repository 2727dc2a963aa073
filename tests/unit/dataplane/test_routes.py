from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from calico_core.dataplane.linux.prefix import parse_prefix
from calico_core.dataplane.linux.route_messages import Route, parse_route, replace_route, workload_route
from calico_core.dataplane.linux.routes import RoutePlan, plan_routes

A, B = parse_prefix("10.0.0.1"), parse_prefix("fd00::1")


def test_nothing_to_do():
    routes = [workload_route(A, 2), workload_route(B, 2)]
    assert plan_routes(routes, routes) == RoutePlan()
    assert not plan_routes([], [])


def test_routes_of_others_stay():
    kept = [
        Route(destination=parse_prefix("10.1.0.0/24"), index=2, protocol=4),
        Route(destination=A, index=2, protocol=3),
        Route(destination=A, index=2, protocol=2),
        Route(destination=parse_prefix("fe80::1"), index=2, protocol=4),
    ]
    assert not plan_routes([], kept)


def test_our_protocol_marks_a_route_of_any_kind_as_ours():
    stray = Route(destination=parse_prefix("10.1.0.0/24"), index=9)
    assert plan_routes([], [stray]).delete == (stray,)


def test_a_foreign_route_of_the_same_identity_is_replaced():
    wanted = workload_route(A, 2)
    foreign = Route(destination=A, index=9, protocol=12)
    assert plan_routes([wanted], [foreign]) == RoutePlan((), (wanted,))


def test_a_twin_of_a_wanted_ipv6_route_is_deleted():
    wanted, twin = workload_route(B, 2), workload_route(B, 3)
    assert plan_routes([wanted], [wanted, twin]) == RoutePlan((twin,), ())


def test_what_is_right_beside_others_needs_no_plan():
    wanted = [workload_route(A, 2), workload_route(B, 2)]
    others = [
        Route(destination=parse_prefix("0.0.0.0/0"), index=9, protocol=3),
        Route(destination=A, index=9, metric=5),
    ]
    assert not plan_routes(wanted, [*others, *wanted], protocol=81)
    stray = Route(destination=parse_prefix("10.1.0.0/24"), index=9, protocol=81)
    assert plan_routes(wanted, [*wanted, stray], protocol=81) == RoutePlan((stray,), ())


_routes = st.lists(
    st.builds(
        Route,
        destination=st.sampled_from([A, B, parse_prefix("10.0.0.2"), parse_prefix("10.1.0.0/24")]),
        index=st.sampled_from([2, 3, 9]),
        protocol=st.sampled_from([80, 2, 4, 12]),
        metric=st.sampled_from([0, 512]),
    ),
    max_size=8,
)


@given(desired=_routes, observed=_routes)
def test_a_second_plan_is_empty(desired, observed):
    """With one route an identity, as the kernel keeps IPv4."""

    def keyed(routes: list[Route]) -> dict[tuple[object, ...], Route]:
        return {(route.destination, route.metric): route for route in routes}

    wanted, kernel = keyed(desired), keyed(observed)
    plan = plan_routes(list(wanted.values()), kernel.values())
    after = {identity: route for identity, route in kernel.items() if route not in plan.delete}
    after |= keyed(list(plan.replace))
    assert wanted.items() <= after.items()
    assert not plan_routes(list(wanted.values()), after.values())


def test_a_route_with_another_source_is_another_route():
    wanted = Route(destination=A, index=2, source=b"\xcb\x00\x71\x07")
    assert plan_routes([wanted], [workload_route(A, 2)]).replace == (wanted,)
    assert not plan_routes([wanted], [wanted])


def test_a_source_is_read_back_as_it_was_written():
    for destination, source in ((A, b"\xcb\x00\x71\x07"), (B, b"\xfd" + b"\0" * 14 + b"\x07")):
        route = Route(destination=destination, index=2, source=source, metric=512)
        assert parse_route(replace_route(route).body) == route

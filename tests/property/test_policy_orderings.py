"""However a state is come to, the host is told the same. Scenario 17: every sequence of named states also reversed,
with its keys in the other order, with nothing in between, squashed into one batch, and split into one key a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from netaddr import IPAddress

from calico_core.model.hoststate import HostState
from calico_core.policy.resolver import PolicyResolver
from tests.property.named_states import HOST, SEQUENCES, STATES, State
from tests.property.test_policy_resolver import contents, take

Batches = list[list[tuple[Any, Any]]]
ADDRESSES = frozenset({IPAddress("192.0.2.1")})


def steps(states: Iterable[State]) -> Batches:
    """What is written to come from one state to the next, from nothing."""
    found: Batches = []
    before: State = {}
    for after in states:
        gone = [(key, None) for key in before if key not in after]
        found.append([*gone, *((key, record) for key, record in after.items() if before.get(key) != record)])
        before = after
    return found


def as_it_is(states: list[State]) -> Batches:
    return steps(states)


def in_reverse(states: list[State]) -> Batches:
    return steps(states[::-1])


def keys_in_reverse(states: list[State]) -> Batches:
    return [batch[::-1] for batch in steps(states)]


def with_nothing_between(states: list[State]) -> Batches:
    return steps(itertools.chain.from_iterable(({}, state) for state in states))


def squashed(states: list[State]) -> Batches:
    return [[update for batch in steps(states) for update in batch]]


def split(states: list[State]) -> Batches:
    return [[update] for batch in steps(states) for update in batch]


def repeated(states: list[State]) -> Batches:
    """Each key also as it was, deleted, and as it is again, as a resync may tell it."""
    return [[*batch, *((key, None) for key, _ in batch), *batch] for batch in steps(states)]


WAYS = (as_it_is, in_reverse, keys_in_reverse, with_nothing_between, squashed, split, repeated)


def fresh(state: State) -> HostState:
    return follow([list(state.items())])


def follow(batches: Batches, in_sync_after: int = 0) -> HostState:
    """``in_sync_after``: so many batches belong to the snapshot."""
    resolver, state = PolicyResolver(HOST), HostState()
    resolver.set_interface("up0", ADDRESSES)
    for number, batch in enumerate(batches):
        resolver.apply(batch)
        if number < in_sync_after and number < len(batches) - 1:
            assert not resolver.flush()
            continue
        resolver.in_sync()
        take(state, resolver.flush())
    return state


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way.__name__))
@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda names: str(names[0]))
def test_only_the_last_state_counts(sequence: tuple[str, ...], way: Callable[[list[State]], Batches]) -> None:
    states = [STATES[name] for name in sequence]
    last = states[0] if way is in_reverse else states[-1]
    wanted = contents(fresh(last))
    batches = way(states)
    assert contents(follow(batches)) == wanted
    assert contents(follow(batches, in_sync_after=len(batches) // 2)) == wanted


@pytest.mark.parametrize("after", STATES)
@pytest.mark.parametrize("before", STATES)
def test_from_any_state_to_any_other(before: str, after: str) -> None:
    for way in (as_it_is, keys_in_reverse):
        assert contents(follow(way([STATES[before], STATES[after]]))) == contents(fresh(STATES[after]))


def test_the_states_differ() -> None:
    """A harness over states that are all told alike would hold nothing."""
    told = {name: contents(fresh(state)) for name, state in STATES.items()}
    same = [(one, other) for one, other in itertools.combinations(told, 2) if told[one] == told[other]]
    # of a policy that selects nobody a host is told as little as of none
    assert {frozenset(pair) for pair in same} <= {
        frozenset(pair) for pair in itertools.combinations(("with a remote one", "the policy selects nothing"), 2)
    }

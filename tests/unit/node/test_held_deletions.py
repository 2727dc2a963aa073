"""Deletions that wait for the agent's word."""

from __future__ import annotations

from calico_core.datastore.known_records import Update
from calico_core.model.keys import BgpHostAddressKey, Key
from calico_core.node.held_deletions import HeldDeletions

A, B = BgpHostAddressKey("rack-a", 4), BgpHostAddressKey("rack-b", 4)


def update(key: Key, record: str | None) -> Update:
    return Update(key, key.path, record, 1)


def held(*, trusts: list[bool]) -> HeldDeletions:
    return HeldDeletions(lambda: trusts[-1], settle_s=1.0)


def test_what_is_there_passes_and_what_is_gone_waits_a_moment() -> None:
    deletions = held(trusts=[True])
    assert deletions.pass_on([update(A, "192.0.2.1"), update(B, None)], 10.0) == [(A, "192.0.2.1")]
    assert deletions.next_look() == 11.0
    assert deletions.look(10.9) == []
    assert deletions.look(11.0) == [(B, None)]
    assert deletions.next_look() is None


def test_what_comes_back_was_never_gone() -> None:
    deletions = held(trusts=[True])
    deletions.pass_on([update(A, None)], 10.0)
    assert deletions.pass_on([update(A, "192.0.2.1")], 10.5) == [(A, "192.0.2.1")]
    assert deletions.next_look() is None
    assert deletions.look(20.0) == []


def test_without_trust_it_waits_and_a_moment_more() -> None:
    trusts = [False]
    deletions = held(trusts=trusts)
    deletions.pass_on([update(A, None)], 10.0)
    assert deletions.look(11.0) == []
    trusts.append(True)
    deletions.pass_on([update(B, None)], 11.5)
    assert deletions.look(11.9) == []
    assert deletions.next_look() == 12.0
    assert deletions.look(12.0) == [(A, None)]
    assert deletions.look(12.5) == [(B, None)]

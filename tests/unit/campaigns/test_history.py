"""The judge of the torture campaign: it must see what is wrong, or its zeros mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.history import NEVER, Account, Call, Holding, Log, account_of, calls, overlaps


def a_holding(handle: str, taken: tuple[float, float], freed: tuple[float, float]) -> Holding:
    return Holding("10.0.0.1", handle, taken, freed)


@pytest.mark.parametrize(
    ("second", "is_possible"),
    [
        (a_holding("b", (5, 6), (8, 9)), True),  # after the release
        (a_holding("b", (3, 6), (8, 9)), True),  # asked while the first gave back: either may come first
        (a_holding("b", (2, 3.5), (8, 9)), True),  # the release may have counted before its answer came
        (a_holding("b", (1, 2.5), (8, 9)), False),  # had it while the first still held it
        (a_holding("b", (0, 9), (9, NEVER)), True),  # an answer that was long on its way
        (a_holding("b", (0, 0.5), (0.7, 0.9)), True),  # before
        (a_holding("b", (0, 0.5), (2.5, 2.8)), False),
        (a_holding("b", (1, 2), (NEVER, NEVER)), False),
    ],
)
def test_two_holders_of_one_address(second: Holding, is_possible: bool) -> None:
    first = a_holding("a", (1, 2), (3, 4))
    for order in ([first, second], [second, first]):
        assert (overlaps(order) == []) is is_possible


def test_holders_of_different_addresses_do_not_meet() -> None:
    other = a_holding("b", (1, 2), (NEVER, NEVER))._replace(address="10.0.0.2")
    assert overlaps([a_holding("a", (1, 2), (NEVER, NEVER)), other]) == []


def test_three_holders_need_an_order() -> None:
    chain = [a_holding(name, (n, n + 1), (n + 1, n + 2)) for n, name in enumerate("abc")]
    assert overlaps(chain) == []
    squeezed = [a_holding("a", (0, 1), (5, 6)), a_holding("b", (5, 7), (8, 9)), a_holding("c", (5, 7.5), (8, 9))]
    assert len(overlaps(squeezed)) == 1


def test_a_log_gives_back_what_was_written(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.begin("A", "h")
    log.end("a", ["10.0.0.1", "10.0.0.2"])
    log.begin("R", "h")
    log.close()
    with (tmp_path / "log").open("a") as file:
        file.write("r 12")  # cut short by a kill
    first, second = calls(tmp_path / "log")
    assert (first.kind, first.outcome, first.addresses) == ("A", "a", ("10.0.0.1", "10.0.0.2"))
    assert first.begin < first.end < second.begin
    assert (second.outcome, second.end) == ("u", NEVER)
    account = account_of(tmp_path / "log")
    assert (account.operations, account.uncertain, set(account.held)) == (1, {"h"}, {"h"})


def an_account(*found: tuple[str, str, tuple[str, ...]]) -> Account:
    account = Account()
    for number, (kind, outcome, addresses) in enumerate(found):
        account.add(Call(kind, "h", 2 * number, outcome, 2 * number + 1, addresses))
    account.close()
    return account


def test_what_a_writer_cannot_explain_is_a_surprise() -> None:
    assert an_account(("A", "a", ("x",)), ("R", "r", ("x",))).surprises == []
    assert an_account(("A", "a", ("x",)), ("A", "a", ("x",))).surprises == []
    assert an_account(("A", "a", ("x",)), ("R", "u", ()), ("R", "r", ())).surprises == []
    assert len(an_account(("A", "a", ("x",)), ("R", "r", ())).surprises) == 1, "somebody took it away"
    assert len(an_account(("A", "a", ("x",)), ("A", "a", ("y",))).surprises) == 1
    assert an_account(("R", "r", ("x",))).surprises


def test_an_address_learned_only_on_giving_it_back_counts() -> None:
    (holding,) = an_account(("A", "u", ()), ("R", "r", ("x",))).holdings
    assert (holding.taken, holding.freed) == ((0, 3), (2, 3))
    (held,) = an_account(("A", "a", ("x",))).holdings
    assert (held.taken, held.freed) == ((0, 1), (NEVER, NEVER))

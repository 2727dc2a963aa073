"""What writers did and when, kept in files that survive a ``kill -9``, and whether it can be true.

Each writer appends to a file of its own, a line before and a line after every call::

    A <handle> <ns>                 asks for addresses        a <ns> <address> …   has them
    R <handle> <ns>                 gives them back           r <ns> <address> …   these were freed
                                                              n <ns>               refused, and nothing was done
                                                              u <ns>               ended, and nobody knows how

A call without an end was cut short by a kill. The clock is the machine's monotonic one, the same for all processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NEVER = float("inf")


class Log:
    """Of one writer. Every line is one ``write`` of its own: what was written is there, whoever is killed next."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def begin(self, kind: str, handle: str) -> None:
        self._write(f"{kind} {handle} {time.monotonic_ns()}\n")

    def end(self, kind: str, addresses: object = ()) -> None:
        texts = [str(address) for address in addresses]  # type: ignore[attr-defined]
        self._write(" ".join([kind, str(time.monotonic_ns()), *texts]) + "\n")

    def close(self) -> None:
        os.close(self._file)

    def _write(self, line: str) -> None:
        os.write(self._file, line.encode())


class Call(NamedTuple):
    """``kind`` is A or R; ``outcome`` a, r, n or u; ``end`` is never for a call that was cut short."""

    kind: str
    handle: str
    begin: float
    outcome: str
    end: float
    addresses: tuple[str, ...]

    @property
    def is_certain(self) -> bool:
        return self.outcome != "u"


class Holding(NamedTuple):
    """One address in one's hands: taken within ``taken``, given back within ``freed``; both are spans of time."""

    address: str
    handle: str
    taken: tuple[float, float]
    freed: tuple[float, float]


def calls(path: Path) -> Iterator[Call]:
    """In order. A last line that a kill cut in two is none."""
    if not path.exists():
        return
    open_call: tuple[str, str, float] | None = None
    for line in path.read_text().split("\n")[:-1]:
        words = line.split(" ")
        if words[0] in {"A", "R"}:
            if open_call is not None:
                yield Call(*open_call, "u", NEVER, ())
            open_call = (words[0], words[1], float(words[2]))
        else:
            assert open_call is not None, line
            yield Call(*open_call, words[0], float(words[1]), tuple(words[2:]))
            open_call = None
    if open_call is not None:
        yield Call(*open_call, "u", NEVER, ())


class Account:
    """What one writer's calls come to, handle by handle."""

    def __init__(self) -> None:
        self.operations = 0
        self.refused = 0
        self.uncertain_ends = 0
        self.held: dict[str, tuple[str, ...]] = {}
        self.uncertain: set[str] = set()
        self.holdings: list[Holding] = []
        self.surprises: list[str] = []
        self._taken: dict[str, tuple[float, float]] = {}
        self._freeing: dict[str, float] = {}

    def add(self, call: Call) -> None:
        self.operations += call.is_certain
        self.refused += call.outcome == "n"
        self.uncertain_ends += not call.is_certain
        (self._asked if call.kind == "A" else self._gave_back)(call)

    def close(self) -> None:
        """Nothing more comes: what is held stays held."""
        for handle, addresses in self.held.items():
            began = self._freeing.get(handle, NEVER)
            self._book(handle, addresses, (began, NEVER))

    def _asked(self, call: Call) -> None:
        handle = call.handle
        first, _ = self._taken.get(handle, (call.begin, NEVER))
        match call.outcome:
            case "a":
                if handle in self.held and not set(self.held[handle]) <= set(call.addresses):
                    self.surprises.append(f"{handle} held {self.held[handle]}, asked again, was told {call.addresses}")
                self._taken.setdefault(handle, (first, call.end))
                self.held[handle] = call.addresses
            case "u":
                self._taken.setdefault(handle, (first, NEVER))
                self.uncertain.add(handle)

    def _gave_back(self, call: Call) -> None:
        handle = call.handle
        began = self._freeing.setdefault(handle, call.begin)
        if not call.is_certain:
            self.uncertain.add(handle)
            return
        known = self.held.pop(handle, ())
        if began == call.begin and handle not in self.uncertain and set(known) != set(call.addresses):
            self.surprises.append(f"{handle} held {known}, gave back {call.addresses}")
        self._book(handle, tuple({*known, *call.addresses}), (began, call.end))
        self.uncertain.discard(handle)
        self._taken.pop(handle, None)
        self._freeing.pop(handle, None)

    def _book(self, handle: str, addresses: tuple[str, ...], freed: tuple[float, float]) -> None:
        if handle not in self._taken:
            if addresses:
                self.surprises.append(f"{handle} gave back {addresses}, and never had them")
            return
        first, last = self._taken[handle]
        self.holdings += [Holding(address, handle, (first, min(last, freed[1])), freed) for address in addresses]


def account_of(path: Path) -> Account:
    account = Account()
    for call in calls(path):
        account.add(call)
    return account


def overlaps(holdings: list[Holding]) -> list[str]:
    """Addresses for which there is no order of taking and giving back, one instant each within its span, in which
    nobody takes what another holds. Empty: the history is linearizable, address by address."""
    by_address: dict[str, list[Holding]] = {}
    for holding in holdings:
        by_address.setdefault(holding.address, []).append(holding)
    found: list[str] = []
    for address, held in by_address.items():
        pair = _first_overlap(held)
        if pair is not None:
            found.append(f"{address}: {pair[0]} and {pair[1]}")
    return found


def _first_overlap(held: list[Holding]) -> tuple[Holding, Holding] | None:
    """Each as early as it can be, in the order in which they must have been given back."""
    now = -NEVER
    previous: Holding | None = None
    for holding in sorted(held, key=lambda holding: (holding.freed[0], holding.freed[1], holding.taken[1])):
        taken = max(now, holding.taken[0])
        freed = max(taken, holding.freed[0])
        if previous is not None and (taken > holding.taken[1] or freed > holding.freed[1]):
            return previous, holding
        now, previous = freed, holding
    return None

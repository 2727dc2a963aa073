"""What local endpoints need: reference counts, and which things came into use or fell out of it over a batch.

local endpoints → lists of policies → rules → sets. The cost for the kernel is that of the local endpoints, not of the
cluster. Source: felix specification 4.6.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from calico_core.model.hoststate import HostInterface, HostWorkload, PolicyList, RulesId

ThingT = TypeVar("ThingT", bound=Hashable)


class References(Generic[ThingT]):
    """Counts. What is released and taken again within a batch was in use all the time."""

    def __init__(self) -> None:
        self._counts: dict[ThingT, int] = {}
        self._before: dict[ThingT, bool] = {}

    def __contains__(self, thing: ThingT) -> bool:
        return thing in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    def hold(self, things: Iterable[ThingT]) -> None:
        counts = self._counts
        for thing in things:
            count = counts.get(thing, 0)
            if not count:
                self._before.setdefault(thing, False)
            counts[thing] = count + 1

    def release(self, things: Iterable[ThingT]) -> None:
        counts = self._counts
        for thing in things:
            count = counts[thing] - 1
            if count:
                counts[thing] = count
                continue
            del counts[thing]
            self._before.setdefault(thing, True)

    def take_changes(self) -> tuple[list[ThingT], list[ThingT]]:
        """What came into use and what fell out of it since the last call."""
        begun = [thing for thing, was_held in self._before.items() if not was_held and thing in self._counts]
        ended = [thing for thing, was_held in self._before.items() if was_held and thing not in self._counts]
        self._before.clear()
        return begun, ended


class ActiveLists:
    """The policy lists of local endpoints, equal ones held once, and the rules they need."""

    def __init__(self) -> None:
        self.rules: References[RulesId] = References()
        self._shared: dict[PolicyList, PolicyList] = {}
        self._users: dict[int, int] = {}

    def share(self, policies: PolicyList) -> PolicyList:
        """The one object for this content. It lives on while an endpoint uses it."""
        return self._shared.setdefault(policies, policies)

    def hold(self, endpoint: HostWorkload | HostInterface) -> None:
        """Its lists come from :meth:`share`."""
        for policies in _lists(endpoint):
            users = self._users.get(id(policies), 0)
            self._users[id(policies)] = users + 1
            if not users:
                self.rules.hold(_rules(policies))

    def release(self, endpoint: HostWorkload | HostInterface) -> None:
        for policies in _lists(endpoint):
            self._users[id(policies)] -= 1
            if not self._users[id(policies)]:
                del self._users[id(policies)]
                self.rules.release(_rules(policies))

    def forget_unused(self) -> None:
        """After a batch: drop the lists nobody uses."""
        if len(self._shared) > len(self._users):
            self._shared = {each: each for each in self._shared.values() if id(each) in self._users}


def _lists(endpoint: HostWorkload | HostInterface) -> tuple[PolicyList, ...]:
    if isinstance(endpoint, HostWorkload):
        return endpoint.inbound, endpoint.outbound
    return (
        endpoint.inbound,
        endpoint.outbound,
        endpoint.forward_inbound,
        endpoint.forward_outbound,
        endpoint.untracked_inbound,
        endpoint.untracked_outbound,
        endpoint.pre_dnat,
    )


def _rules(policies: PolicyList) -> Iterable[RulesId]:
    for tier in policies.tiers:
        yield from tier.policies
    yield from policies.profiles

"""Whether the datastore may take things away: a store that suddenly lost most of its records is asked twice.

Deletions wait here while they are suspect; new and changed records pass at once. A deletion of a local endpoint is
never suspect when its interface is gone too: the store and the kernel are two signs that agree. What waits is let go
when its record comes back, when its interface goes, when another record claims its address or interface, when most
other records are back and no more come, when a person confirms, or when the store has said the same for long enough.
Settings wait too: a node that starts anew without them would forget what waits. Pure: the clock and the kernel come in
as arguments. The engine thread owns it. Source: felix specification 8, "Datastore rebuilt".
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping

from calico_core.datastore.known_records import Update
from calico_core.datastore.syncer import SyncBatch
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import (
    BgpHostAddressKey,
    GlobalConfigKey,
    HostConfigKey,
    HostEndpointKey,
    HostIpKey,
    Key,
    NetworkSetKey,
    PolicyKey,
    PoolKey,
    ProfileLabelsKey,
    ProfileRulesKey,
    ProfileTagsKey,
    TierKey,
    WorkloadEndpointKey,
)
from calico_core.model.record import Value

_WINDOW_S = 30.0
_SHARE = 0.5
_FEWEST = 16
"""Fewer deletions than this, one by one, are somebody's work."""
_FEWEST_AT_ONCE = 4
"""The same of a snapshot: there they are what was not seen to happen."""
_QUIET_S = 5.0
"""Interfaces go a moment after their records do; nobody is told before."""
_LOCAL = "local endpoints"
_NOUNS: dict[type[Key], str] = {
    WorkloadEndpointKey: "remote endpoints",
    HostEndpointKey: "host endpoints",
    NetworkSetKey: "network sets",
    PolicyKey: "policies",
    TierKey: "tiers",
    ProfileRulesKey: "profiles",
    ProfileTagsKey: "tags of profiles",
    ProfileLabelsKey: "labels of profiles",
    PoolKey: "pools",
    GlobalConfigKey: "settings",
    HostConfigKey: "settings of hosts",
    HostIpKey: "hosts",
    BgpHostAddressKey: "addresses of hosts",
}
_NO_SIGN = (HostConfigKey, HostIpKey, BgpHostAddressKey)
"""By themselves: hosts withdraw them, as tunnel addresses, or are taken out of service. But without the addresses of
hosts whatever comes encapsulated from them is refused, so they wait with the rest."""
LASTING: dict[type[Key], str] = {
    kind: _NOUNS[kind] for kind in (HostEndpointKey, NetworkSetKey, PolicyKey, TierKey, ProfileRulesKey, PoolKey)
}
"""What an operator has made, so that a node that starts can tell by its number whether it is lost."""
_BY_EVENTS = frozenset({_LOCAL, "policies", "tiers", "profiles"})
"""Of these a flood of deletions is suspect too; that most remote endpoints end within seconds happens. What was written
a moment before is somebody's work and no part of a flood; of local endpoints the kernel knows better."""


class RemovalFreeze(Value, frozen=True):
    """Deletions wait. ``since`` is on the clock that the guard was given; ``waiting`` counts them."""

    reason: str
    since: float
    waiting: int


class RemovalGuard:
    """``exists``: whether a host interface is there. ``count``: how many records of a kind of key the consumer has.
    ``confirm_after_s``: how long a store must say the same to be believed; 0: for ever."""

    def __init__(
        self,
        host: str,
        *,
        exists: Callable[[str], bool],
        count: Callable[[], Mapping[type[Key], int]],
        confirm_after_s: float = 300.0,
    ) -> None:
        self._host, self._exists, self._count = host, exists, count
        self._confirm_after_s = confirm_after_s
        self._local: dict[Key, WorkloadEndpoint] = {}
        self._interfaces: frozenset[str] | None = None  # those of the above, when it was asked last
        self._lasting: dict[str, set[Key]] = {noun: set() for noun in LASTING.values()}
        self._recent: deque[tuple[float, str]] = deque()
        self._written: dict[Key, float] = {}  # by events, in the order of time; see _BY_EVENTS
        self._waiting: dict[Key, Update] = {}
        self._reason, self._since, self._believed_since = "", 0.0, 0.0
        self._few_since: float | None = None  # most records were back, the latest at this time

    def freeze(self, now: float) -> RemovalFreeze | None:
        """None: nothing waits, or not for long enough to be worth a word."""
        if not self._waiting or now - self._since < _QUIET_S:
            return None
        return RemovalFreeze(reason=self._reason, since=self._since, waiting=len(self._waiting))

    @property
    def is_waiting(self) -> bool:
        """Any thread."""
        return bool(self._waiting)

    def next_look(self, now: float) -> float | None:
        """When to call :meth:`look` again; None: no need."""
        if not self._waiting:
            return None
        at = [self._since + _QUIET_S] if now < self._since + _QUIET_S else []
        at += [self._few_since + _QUIET_S] if self._few_since is not None else []
        at += [self._believed_since + self._confirm_after_s] if self._confirm_after_s > 0 else []
        return min(at, default=None)

    @property
    def interfaces(self) -> frozenset[str]:
        """Of the local endpoints that were passed on."""
        if self._interfaces is None:
            self._interfaces = frozenset(record.name for record in self._local.values())
        return self._interfaces

    @property
    def records(self) -> dict[str, int]:
        """How many of each lasting kind were passed on, by noun."""
        return {noun: len(keys) for noun, keys in self._lasting.items() if keys}

    # --- what passes -----------------------------------------------------------------------------------------

    def pass_on(self, batch: SyncBatch, now: float) -> list[Update]:
        """The updates to be followed now."""
        passed: list[Update] = []
        deletions: list[Update] = []
        for update in batch.updates:
            if update.record is None and type(update.key) in _NOUNS:
                deletions.append(update)
                continue
            passed.append(update)
            if noun := LASTING.get(type(update.key)):
                self._lasting[noun].add(update.key)
            if not batch.is_snapshot:
                self._note_written(update.key, now)
            if self._waiting or self._noun(update.key) == _LOCAL:
                passed += self._take_back(update, now)
        if not deletions:
            return passed
        if not self._waiting:
            self._reason = self._suspicion(deletions, now, is_snapshot=batch.is_snapshot)
            self._since = self._believed_since = now
        if not self._reason:
            return passed + self._let_go(deletions)
        for update in deletions:
            if self._is_gone_from_kernel(update.key):
                passed += self._let_go([update])
            else:
                self._waiting[update.key] = update
        if len(self._waiting) >= _FEWEST_AT_ONCE:
            self._few_since = None
        return passed

    def interface_gone(self, name: str) -> list[Update]:
        """The deletions that its end confirms."""
        return self._release([key for key in self._waiting if self._is_local(key) and self._local[key].name == name])

    def look(self, now: float, *, is_in_sync: bool) -> list[Update]:
        """Time has passed. ``is_in_sync``: what the store says is known to be what it says now; only such time
        counts."""
        if not self._waiting:
            return []
        if not is_in_sync:
            self._believed_since = now
            self._few_since = now if self._few_since is not None else None
        is_over = self._confirm_after_s > 0 and now - self._believed_since >= self._confirm_after_s
        is_back = is_in_sync and self._few_since is not None and now - self._few_since >= _QUIET_S
        return self.confirm() if is_over or is_back else []

    def confirm(self) -> list[Update]:
        """Somebody says that all of it is meant."""
        return self._release(list(self._waiting))

    # --- inside ----------------------------------------------------------------------------------------------

    def _is_local(self, key: Key) -> bool:
        return key in self._local

    def _noun(self, key: Key) -> str:
        is_of_host = isinstance(key, WorkloadEndpointKey) and key.host == self._host
        return _LOCAL if is_of_host else _NOUNS.get(type(key), "")

    def _note_written(self, key: Key, now: float) -> None:
        noun = self._noun(key)
        if noun == _LOCAL or noun not in _BY_EVENTS:
            return
        self._written.pop(key, None)
        self._written[key] = now
        while (oldest := next(iter(self._written))) != key and self._written[oldest] < now - _WINDOW_S:
            del self._written[oldest]

    def _was_just_written(self, key: Key, now: float) -> bool:
        written = self._written.get(key)
        return written is not None and written >= now - _WINDOW_S

    def _is_gone_from_kernel(self, key: Key) -> bool:
        record = self._local.get(key)
        return record is not None and not self._exists(record.name)

    def _take_back(self, update: Update, now: float) -> list[Update]:
        """A record that is there again, or that claims what one that waits had."""
        released: list[Update] = []
        if self._waiting.pop(update.key, None) is not None:
            if len(self._waiting) < _FEWEST_AT_ONCE:
                self._few_since = now  # so few are nobody's catastrophe, unless they are under way still
            self._end_if_empty()
        record = update.record
        if isinstance(record, WorkloadEndpoint) and self._noun(update.key) == _LOCAL:
            taken = [key for key in self._waiting if self._is_local(key) and _overlap(self._local[key], record)]
            released += self._release(taken)
            self._local[update.key] = record
            self._interfaces = None
        return released

    def _let_go(self, deletions: Iterable[Update]) -> list[Update]:
        released = list(deletions)
        for update in released:
            if self._local.pop(update.key, None) is not None:
                self._interfaces = None
            elif noun := LASTING.get(type(update.key)):
                self._lasting[noun].discard(update.key)
        return released

    def _release(self, keys: list[Key]) -> list[Update]:
        released = self._let_go(self._waiting.pop(key) for key in keys)
        self._end_if_empty()
        return released

    def _end_if_empty(self) -> None:
        if not self._waiting:
            self._reason, self._few_since = "", None

    def _suspicion(self, deletions: list[Update], now: float, *, is_snapshot: bool) -> str:
        """Why these deletions are to wait, or ''."""
        while self._recent and self._recent[0][0] < now - _WINDOW_S:
            self._recent.popleft()
        alive = [
            self._noun(update.key)
            for update in deletions
            if not isinstance(update.key, _NO_SIGN)
            and (is_snapshot or not self._was_just_written(update.key, now))
            and not self._is_gone_from_kernel(update.key)
        ]
        self._recent.extend((now, noun) for noun in alive)
        fewest = _FEWEST_AT_ONCE if is_snapshot else _FEWEST
        lost = Counter(alive if is_snapshot else (noun for _, noun in self._recent))
        many = {noun for noun, count in lost.items() if count >= fewest and (is_snapshot or noun in _BY_EVENTS)}
        if not many:
            return ""
        left = self._left(deletions)
        how = "while it was away" if is_snapshot else "at once"
        for noun in sorted(many):
            had = left[noun] + lost[noun]
            if lost[noun] > _SHARE * had:
                return f"the datastore lost {lost[noun]} of {had} {noun} {how}"
        return ""

    def _left(self, deletions: list[Update]) -> Counter[str]:
        """How many of each kind there are without the deleted ones, which the counts no longer have."""
        counts = self._count()
        left = Counter({noun: counts.get(kind, 0) for kind, noun in _NOUNS.items()})
        gone = {update.key for update in deletions}
        left[_LOCAL] = sum(key not in gone for key in self._local)
        left[_NOUNS[WorkloadEndpointKey]] -= left[_LOCAL]
        return left


def _overlap(waiting: WorkloadEndpoint, record: WorkloadEndpoint) -> bool:
    return waiting.name == record.name or not set(waiting.nets).isdisjoint(record.nets)

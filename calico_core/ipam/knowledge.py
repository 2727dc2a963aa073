"""What this process believes the store holds: the cache that makes an assignment one round trip.

It may be stale at any time, other processes write too; nothing is correct because of it. It only supplies the
revisions a transaction compares against, and a refused transaction brings it up to date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from calico_core.ipam.decoding import decode_or_none
from calico_core.log import get_logger
from calico_core.model.addresses import contains
from calico_core.model.blocks import Affinity, Block, Handle, IpamConfig, Reservation
from calico_core.model.keys import (
    AffinityKey,
    BlockKey,
    HandleKey,
    HostConfigKey,
    IpamConfigKey,
    Key,
    PoolKey,
    ReservationKey,
)
from calico_core.model.pools import Pool

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import IPAddress, IPNetwork

    from calico_core.interfaces.datastore import Entry

log = get_logger(__name__)

R = TypeVar("R")

_HANDLES_KEPT = 8192


class Known(NamedTuple, Generic[R]):
    """A key as it was at revision ``as_of``. ``mod_revision`` 0: absent. A record of None at another revision:
    it is there, and does not decode; such a key is never written. ``is_tombstone``: it is there, and its writer says
    that it counts as absent."""

    record: R | None
    mod_revision: int
    as_of: int
    is_tombstone: bool = False

    @property
    def is_malformed(self) -> bool:
        return self.record is None and self.mod_revision != 0 and not self.is_tombstone


class Family:
    """One address family. ``affinities`` are this host's, ``affinities_as_of`` the revision up to which no write to
    one of them was missed; -1 means nothing was read yet. ``taken`` are blocks that existed when last heard of;
    ``listed_as_of`` when all of them were heard of. ``rewritten``: pools that were changed since they were made, with
    the revision; blocks in them may have been cut otherwise. ``borrowed_from`` the pools about which people were told
    that addresses of other hosts are used."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.borrowed_from: set[IPNetwork] = set()
        self.clear()

    def clear(self) -> None:
        self.pools: dict[IPNetwork, Known[Pool]] = {}
        self.affinities: dict[IPNetwork, Known[Affinity]] = {}
        self.affinities_as_of = -1
        self.blocks: dict[IPNetwork, Known[Block]] = {}
        self.taken: set[IPNetwork] = set()
        self.listed_as_of = -1
        self.rewritten: dict[IPNetwork, int] = {}
        self.revision = 0
        self._undecoded: dict[IPNetwork, tuple[Entry, int]] = {}

    @property
    def is_loaded(self) -> bool:
        return self.affinities_as_of >= 0

    def block(self, cidr: IPNetwork) -> Known[Block] | None:
        """None when nothing is known. Decodes what a listing left for later."""
        waiting = self._undecoded.pop(cidr, None)
        if waiting is not None:
            self.learn(BlockKey(cidr), waiting[0], waiting[1])
        return self.blocks.get(cidr)

    def block_of(self, address: IPAddress) -> Known[Block] | None:
        """The known block that holds an address, whatever its size."""
        for known in self.blocks.values():
            if known.record is not None and contains(known.record.cidr, address):
                return known
        return None

    def learn(self, key: PoolKey | AffinityKey | BlockKey, entry: Entry | None, as_of: int) -> None:
        table: dict[IPNetwork, Known[Any]]
        match key:
            case BlockKey():
                self._undecoded.pop(key.cidr, None)
                _learn(self.blocks, key.cidr, key, entry, as_of)
                is_there = entry is not None and not self.blocks[key.cidr].is_tombstone
                (self.taken.add if is_there else self.taken.discard)(key.cidr)
                return
            case AffinityKey():
                table = self.affinities
            case PoolKey():
                table = self.pools
                if entry is not None and entry.create_revision != entry.mod_revision:
                    self.rewritten[key.cidr] = entry.mod_revision
        _learn(table, key.cidr, key, entry, as_of)

    def learn_listing(self, entries: Iterable[tuple[BlockKey, Entry]], as_of: int) -> None:
        """All blocks there are. Only those known before are decoded now: a listing may be long."""
        listed = {key.cidr: entry for key, entry in entries}
        for cidr in [cidr for cidr in self.blocks if cidr not in listed]:
            self.learn(BlockKey(cidr), None, as_of)
        for cidr, entry in listed.items():
            if cidr in self.blocks:
                self.learn(BlockKey(cidr), entry, as_of)
            else:
                self._undecoded[cidr] = (entry, as_of)
        self.taken = {cidr for cidr in listed if cidr in self._undecoded or not self.blocks[cidr].is_tombstone}
        self.listed_as_of = as_of

    def keep_own(self, host: str) -> None:
        """Drop the blocks of other hosts: they change without us, and there may be many. What an affinity of ours
        points at stays, whatever it is, so that it is not read again for each call."""
        self._undecoded.clear()
        strangers = [
            cidr
            for cidr, known in self.blocks.items()
            if (known.record is None or known.record.owner != host) and not self._is_claimed(cidr)
        ]
        for cidr in strangers:
            del self.blocks[cidr]

    def _is_claimed(self, cidr: IPNetwork) -> bool:
        affinity = self.affinities.get(cidr)
        return affinity is not None and affinity.mod_revision != 0


class Knowledge:
    """Both families, the configuration, and handles lately seen. Each family is touched only under its lock; handles
    and the configuration are replaced whole, which is safe from several threads."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.families = {4: Family(4), 6: Family(6)}
        self.config: Known[IpamConfig] = Known(None, 0, -1)
        self.handles: dict[str, Known[Handle]] = {}
        self.labels: Known[str] = Known(None, 0, -1)  # of this host, as text
        # "None was written since the beginning" costs nothing to suppose: who is wrong is refused, and reads them.
        self.reservations: dict[str, Known[Reservation]] = {}
        self.reservations_as_of = 0

    def handle(self, handle: str) -> Known[Handle]:
        """Never heard of counts as absent, as of long ago."""
        return self.handles.get(handle, _NEVER)

    def learn(self, key: Key, entry: Entry | None, as_of: int) -> None:
        """Take in what was read at revision ``as_of``; older news than what is known are ignored."""
        match key:
            case BlockKey() | PoolKey():
                self.families[key.cidr.version].learn(key, entry, as_of)
            case AffinityKey() if key.host == self.host:
                self.families[key.cidr.version].learn(key, entry, as_of)
            case IpamConfigKey():
                table: dict[str, Known[Any]] = {"config": self.config}
                _learn(table, "config", key, entry, as_of)
                self.config = table["config"]
            case HostConfigKey(host=self.host, name="Labels"):
                labels: dict[str, Known[Any]] = {"labels": self.labels}
                _learn(labels, "labels", key, entry, as_of)
                self.labels = labels["labels"]
            case HandleKey():
                _learn(self.handles, key.handle, key, entry, as_of)
                self._bound_handles()

    def learn_handle(self, handle: str, record: Handle | None, revision: int) -> None:
        """As just committed."""
        if record is None:
            self.handles.pop(handle, None)
            return
        self.handles[handle] = Known(record, revision, revision)
        self._bound_handles()

    def clear(self, version: int) -> None:
        """Forget a family, and the handles with it: the store is not the one that was read before."""
        self.families[version].clear()
        self.handles.clear()
        self.config = Known(None, 0, -1)
        self.labels = Known(None, 0, -1)
        self.reservations = {}
        self.reservations_as_of = 0

    def learn_reservations(self, entries: Iterable[tuple[ReservationKey, Entry]], as_of: int) -> None:
        """All there are. One that does not decode reserves nothing, and is named in the log."""
        found: dict[str, Known[Any]] = {}
        for key, entry in entries:
            _learn(found, key.name, key, entry, as_of)
        self.reservations, self.reservations_as_of = found, as_of

    def reserved(self, version: int) -> list[IPNetwork]:
        """CIDRs that are not for automatic assignment."""
        known = [known.record for known in self.reservations.values() if known.record is not None]
        return [cidr for record in known for cidr in record.cidrs if cidr.version == version]

    def _bound_handles(self) -> None:
        while len(self.handles) > _HANDLES_KEPT:
            try:
                del self.handles[next(iter(self.handles))]
            except (KeyError, RuntimeError):  # another thread was quicker
                return


_NEVER: Known[Handle] = Known(None, 0, -1)


def _learn(table: dict[Any, Known[Any]], name: Any, key: Key, entry: Entry | None, as_of: int) -> None:
    known = table.get(name)
    if known is not None and known.as_of > as_of:
        return
    if entry is None:
        table[name] = Known(None, 0, as_of)
    elif known is not None and known.mod_revision == entry.mod_revision:
        table[name] = known._replace(as_of=as_of)
    else:
        record = decode_or_none(key, entry)
        is_tombstone = isinstance(record, Block) and record.deleted
        table[name] = Known(None if is_tombstone else record, entry.mod_revision, as_of, is_tombstone)

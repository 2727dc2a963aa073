"""Profiles that come with an endpoint: those that many use are made once, one of its own comes and goes with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from calico_core.interfaces.datastore import Delete, Operation, Precondition, Put, Records, absent
from calico_core.interfaces.ipam import Companion
from calico_core.model import codec
from calico_core.model.ids import check_name, escape
from calico_core.model.keys import PROFILES, ProfileLabelsKey, ProfileRulesKey, ProfileTagsKey
from calico_core.model.workloads import NewProfile


def profiles_to_write(
    records: Records, wanted: Iterable[NewProfile], is_known: Callable[[str], bool]
) -> tuple[NewProfile, ...]:
    """Those that do not exist, which are there as soon as any of their keys is; and the endpoint's own in any case.
    Source: datastore specification 4.4."""
    wanted = tuple(wanted)
    for new in wanted:
        check_name(new.name, field="new_profiles")
    return tuple(
        new
        for new in wanted
        if new.is_own or (not is_known(new.name) and not records.store.list(f"{PROFILES}{new.name}/").entries)
    )


def profile_writes(profiles: Iterable[NewProfile]) -> Companion:
    preconditions: list[Precondition] = []
    operations: list[Operation] = []
    for profile in profiles:
        writes = (
            (ProfileRulesKey(profile.name), profile.rules),
            (ProfileTagsKey(profile.name), profile.tags),
            (ProfileLabelsKey(profile.name), profile.labels),
        )
        for key, record in writes:
            if not profile.is_own:
                preconditions.append(absent(key.path))
            operations.append(Put(key.path, codec.encode(record)))
    return Companion(tuple(preconditions), tuple(operations))


def profile_deletions(names: Iterable[str]) -> tuple[Delete, ...]:
    kinds = (ProfileRulesKey, ProfileTagsKey, ProfileLabelsKey)
    return tuple(Delete(kind(name).path) for name in names for kind in kinds)


def profile_copies(records: Records, names: Iterable[str]) -> tuple[Put, ...]:
    """What brings the profiles back as they are now."""
    return tuple(
        Put(entry.key, entry.value)
        for name in names
        for entry in records.store.list(f"{PROFILES}{escape(name)}/").entries
    )

"""The part of the settings that the datastore holds, as a start reads it. Source: felix specification 2.1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from calico_core.errors import InvalidSettings
from calico_core.interfaces.datastore import Records
from calico_core.log import get_logger
from calico_core.model.keys import HOSTS, V1, GlobalConfigKey, HostConfigKey
from calico_core.setting_fields import (
    ENVIRONMENT_PREFIX,
    FIELDS,
    IGNORED,
    NO_GUESS,
    WITHOUT_EFFECT_IN_STORE,
    WRITTEN_BY_NODES,
    unknown_names,
)
from calico_core.settings import Settings, load_settings, shown_value
from calico_core.settings_file import file_of, read_settings_file

log = get_logger(__name__)

_OFF = frozenset({"false", "no", "0", "none"})


class StoredConfig(NamedTuple):
    """Name → text, of this host and of all."""

    of_host: Mapping[str, str] = {}
    of_all: Mapping[str, str] = {}


def read_stored_config(records: Records, host: str) -> StoredConfig:
    found: dict[type, dict[str, str]] = {HostConfigKey: {}, GlobalConfigKey: {}}
    for prefix in (f"{V1}config/", f"{HOSTS}{host}/config/"):
        for each in records.list(prefix):
            if isinstance(each.key, GlobalConfigKey | HostConfigKey):
                found[type(each.key)][each.key.name] = each.record
    return StoredConfig(found[HostConfigKey], found[GlobalConfigKey])


def with_stored_config(settings: Settings, environment: Mapping[str, str], stored: StoredConfig) -> Settings:
    """Settings with the datastore's configuration beneath environment and file. An unusable stored value is logged
    and counts as not there: one bad key must not stop every host, nor take the other keys from it.

    :raises InvalidSettings: of :data:`~calico_core.setting_fields.NO_GUESS`.
    """
    file = read_settings_file(file_of(environment))
    while True:
        try:
            merged = load_settings(environment, file=file, host_config=stored.of_host, global_config=stored.of_all)
            break
        except InvalidSettings as error:
            if error.name in NO_GUESS:
                raise
            stored = _without(stored, error)
            log.error("settings.stored_value_ignored", reason=str(error))
    changed = {name: origin for name, origin in merged.origins.items() if origin.startswith("datastore ")}
    values = {name: getattr(merged, name) for name in changed}
    return msgspec.structs.replace(
        settings, **values, origins=settings.origins | changed, shadowed=merged.shadowed, notes=merged.notes
    )


def _without(stored: StoredConfig, error: InvalidSettings) -> StoredConfig:
    """Raises the error when it is not about a stored value."""
    place, _, name = error.origin.rpartition(" ")
    if place == "datastore host" and name in stored.of_host:
        return stored._replace(of_host={each: text for each, text in stored.of_host.items() if each != name})
    if place == "datastore global" and name in stored.of_all:
        return stored._replace(of_all={each: text for each, text in stored.of_all.items() if each != name})
    raise error


def tell_settings(settings: Settings, environment: Mapping[str, str], stored: StoredConfig) -> None:
    """Every value with its origin (defaults to those who look closely), what was passed over, and names that mean
    nothing: once a start."""
    for field in FIELDS:
        value = shown_value(field.name, getattr(settings, field.name))
        tell = log.info if field.name in settings.origins else log.debug
        tell("settings.value", setting=field.name, value=value, origin=settings.origins.get(field.name, "default"))
    for note in settings.notes:
        log.warning("settings.value_ignored", reason=note)
    path = file_of(environment)
    file = read_settings_file(path)
    _warn(f"file {path}", unknown_names(file, is_file=True))
    _warn("datastore", unknown_names({*stored.of_host, *stored.of_all}))
    _warn("environment", _unknown_variables(environment))
    for where, given in (("environment", _of_reference(environment)), (f"file {path}", file)):
        _warn_ignored(where, given, IGNORED)
    for where, stored_there in (("datastore host", stored.of_host), ("datastore global", stored.of_all)):
        known = {name.lower(): text for name, text in stored_there.items() if name in WITHOUT_EFFECT_IN_STORE}
        _warn_ignored(where, known, WITHOUT_EFFECT_IN_STORE)


def _of_reference(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables of the reference system's agent: names in lower case."""
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): text
        for name, text in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }


def _warn_ignored(where: str, given: Mapping[str, str], reasons: Mapping[str, str]) -> None:
    """Of names that are known and change nothing; not of what nodes write themselves, and not of what is off."""
    for name, reason in reasons.items():
        text = given.get(name.lower(), "")
        if text and reason != WRITTEN_BY_NODES and text.strip().lower() not in _OFF:
            log.warning("settings.no_effect", name=name, where=where, reason=reason)


def _unknown_variables(environment: Iterable[str]) -> dict[str, str]:
    known = {variable for field in FIELDS for variable in field.environment}
    given = [name for name in environment if name.startswith(ENVIRONMENT_PREFIX) and name not in known]
    unknown = unknown_names((name.removeprefix(ENVIRONMENT_PREFIX).lower() for name in given), is_file=True)
    return {f"{ENVIRONMENT_PREFIX}{name.upper()}": near for name, near in unknown.items()}


def _warn(where: str, unknown: Mapping[str, str]) -> None:
    for name, near in sorted(unknown.items()):
        log.warning("settings.unknown_name", name=name, where=where, did_you_mean=near or None)

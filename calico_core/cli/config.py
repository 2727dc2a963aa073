"""``calicoctl config``: what every setting is, where it comes from, and the part of it that the datastore holds."""

from __future__ import annotations

import difflib
import os
from typing import Any, NamedTuple

import click

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.output import answer, note, say
from calico_core.errors import CalicoError, Conflict, InvalidRequest, InvalidSettings
from calico_core.interfaces.datastore import Compare, Delete, Operation, Put
from calico_core.model.ids import check_name
from calico_core.model.keys import HOSTS, V1, GlobalConfigKey, HostConfigKey
from calico_core.setting_fields import BY_CONFIG, FIELDS, IGNORED, LIVE, Field
from calico_core.settings import Settings, Shadowed, parse_setting, shown_value
from calico_core.settings_file import load_local_settings

_ATTEMPTS = 3


class _Source(NamedTuple):
    """``is_node``: what the node of this host started with, not what the caller's environment says."""

    settings: Settings
    is_node: bool


@click.group()
def config() -> None:
    """Settings: environment and file of the node come first, then the datastore (host, global), then defaults."""


@config.command()
@click.option("--host", "host", metavar="HOST", help="As it is for this host.")
@pass_context
def show(context: CliContext, host: str | None) -> None:
    """Show every setting, its value, its origin, and the values of other origins that it comes before."""
    host = host or context.host
    source = _source(context, host)
    stored = _stored(context, host)
    rows = [_row(field, source, stored) for field in FIELDS]
    columns = {"Setting": "setting", "Datastore name": "name", "Value": "value", "Origin": "origin", "Change": "change"}
    answer(context, rows, columns)
    for row in rows:
        for each in row["shadowed"]:
            note(f"{row['setting']}: comes before {each['value']} ({each['origin']})")
        if row["invalid"]:
            note(f"{row['setting']}: {row['invalid']}; nodes leave out all that the datastore holds")
        if row["running"] is not None:
            note(f"{row['setting']}: the node runs with {row['running']} until it is started again")


@config.command("set")
@click.argument("name")
@click.argument("value")
@click.option("--host", "host", metavar="HOST", help="For this host alone; without it for all.")
@pass_context
def set_(context: CliContext, name: str, value: str, host: str | None) -> None:
    """Give a setting a value in the datastore. NAME is its datastore name, such as LogSeverityScreen."""
    field = _field(name)
    try:
        field.parse(value)
    except CalicoError as error:
        raise InvalidRequest(name, error.reason if isinstance(error, InvalidRequest) else str(error)) from error
    if not value.strip():
        raise InvalidRequest(name, "an empty value counts as none: use 'calicoctl config remove'")
    before = _write(context, _key(name, host), value.strip())
    whose = f"of host {host}" if host else "of all hosts"
    if before == value.strip():
        click.echo(f"{name} {whose} is {value.strip()}: unchanged")
        return
    say(f"{name} {whose} set to {value.strip()}" + (f" (was {before})" if before is not None else ""))
    note("in force at once" if field.is_live else "nodes that run with another value are started again for it")


@config.command()
@click.argument("name")
@click.option("--host", "host", metavar="HOST", help="Of this host alone; without it that of all.")
@pass_context
def remove(context: CliContext, name: str, host: str | None) -> None:
    """Take a setting out of the datastore: what comes after it counts again."""
    _field(name)
    before = _write(context, _key(name, host), None)
    whose = f"of host {host}" if host else "of all hosts"
    say(f"{name} {whose} {f'removed (was {before})' if before is not None else 'is not set: unchanged'}")


def _field(name: str) -> Field:
    found = BY_CONFIG.get(name)
    if found is None and name in IGNORED:
        raise InvalidRequest("NAME", f"{name} changes nothing here: {IGNORED[name]}")
    if found is None:
        near = difflib.get_close_matches(name, BY_CONFIG, n=1, cutoff=0.5)
        by_case = next((known for known in BY_CONFIG if known.lower() == name.lower()), None)
        hint = f"did you mean {by_case or near[0]}?" if by_case or near else f"known: {', '.join(sorted(BY_CONFIG))}"
        raise InvalidRequest("NAME", f"the datastore holds no setting {name!r}; {hint}")
    return found


def _key(name: str, host: str | None) -> GlobalConfigKey | HostConfigKey:
    return GlobalConfigKey(name) if host is None else HostConfigKey(check_name(host, field="--host"), name)


def _write(context: CliContext, key: GlobalConfigKey | HostConfigKey, value: str | None) -> str | None:
    """Compare-and-swap; gives what was there. Raises ``Conflict``."""
    store = context.records.store
    for _ in range(_ATTEMPTS):
        entry = store.get(key.path)
        before = None if entry is None else entry.value.decode(errors="replace")
        if before == value:
            return before
        operation: Operation = Delete(key.path) if value is None else Put(key.path, value.encode())
        if store.transact([Compare(key.path, 0 if entry is None else entry.mod_revision)], [operation]).committed:
            return before
    raise Conflict(key.path, None)


# --- showing -----------------------------------------------------------------------------------------


def _source(context: CliContext, host: str) -> _Source:
    """What comes before the datastore: as the node on this host saved it, else as this environment has it."""
    from calico_core.node.composition import load_saved_settings

    here = load_local_settings(os.environ)
    if host != context.host:
        note(f"environment and file of host {host} are not known here: this is what the datastore says to it")
        return _Source(Settings(), is_node=False)
    try:
        saved = load_saved_settings(here.run_directory)
    except (OSError, InvalidSettings):
        return _Source(here, is_node=False)
    return _Source(saved, is_node=True) if saved.node_name in {"", host} else _Source(here, is_node=False)


def _stored(context: CliContext, host: str) -> dict[tuple[str, str], str]:
    """(``host`` or ``global``, name) → value."""
    prefixes = {"global": f"{V1}config/", "host": f"{HOSTS}{host}/config/"}
    return {
        (level, found.key.name): found.record
        for level, prefix in prefixes.items()
        for found in context.records.list(prefix)
        if isinstance(found.key, GlobalConfigKey | HostConfigKey) and found.record
    }


def _row(field: Field, source: _Source, stored: dict[tuple[str, str], str]) -> dict[str, Any]:
    """``running``: what the node runs with, where that is not what the next start would take."""
    origin = source.settings.origins.get(field.name, "default")
    value = getattr(source.settings, field.name)
    others = [each for each in source.settings.shadowed.get(field.name, ()) if not _is_stored(each.origin)]
    candidates = _candidates(field, stored)
    invalid, running = "", None
    if field.config and not _is_nearer(origin):
        started_with = value
        value, origin, invalid = _from_store(field, candidates)
        candidates = [each for each in candidates if each.origin != origin and not invalid]
        if source.is_node and field.name not in LIVE and value != started_with:
            running = _shown(field.name, started_with)
    return {
        "setting": field.name,
        "name": field.config[0] if field.config else None,
        "value": _shown(field.name, value),
        "origin": origin,
        "shadowed": [
            {"origin": each.origin, "value": shown_value(field.name, each.text)} for each in (*others, *candidates)
        ],
        "change": _change(field),
        "invalid": invalid or None,
        "running": running,
    }


def _change(field: Field) -> str:
    """What a change in the datastore does to a running node; without a name there, there is none."""
    if not field.config:
        return "by hand"
    return "at once" if field.is_live else "restart"


def _is_nearer(origin: str) -> bool:
    return origin.startswith(("environment", "file"))


def _is_stored(origin: str) -> bool:
    return origin.startswith("datastore")


def _candidates(field: Field, stored: dict[tuple[str, str], str]) -> list[Shadowed]:
    """What the datastore says of a field, the winner first."""
    return [
        Shadowed(f"datastore {level} {name}", stored[level, name])
        for level in ("host", "global")
        for name in field.config
        if (level, name) in stored
    ]


def _from_store(field: Field, candidates: list[Shadowed]) -> tuple[Any, str, str]:
    """Value, origin, and what is wrong with a stored value that cannot be used."""
    default = getattr(Settings(), field.name)
    if not candidates:
        return default, "default", ""
    origin, text = candidates[0]
    try:
        return parse_setting(field, origin, text), origin, ""
    except InvalidSettings as error:
        return default, "default", f"{origin}: {error.reason}"


def _shown(name: str, value: Any) -> Any:
    shown = shown_value(name, value)
    return list(shown) if isinstance(shown, tuple) else shown

"""``calicoctl profile``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.failure import Missing, Refused
from calico_core.cli.field_words import with_what_is_right
from calico_core.cli.named import NamedGroup, name_of
from calico_core.cli.output import answer, say
from calico_core.cli.policy_documents import check_fields
from calico_core.cli.rule_counters import print_counters
from calico_core.cli.rule_words import parse_rule, render_rule
from calico_core.errors import Conflict, InvalidRequest
from calico_core.interfaces.datastore import Compare, Delete, Operation, Precondition, Put, absent
from calico_core.model import codec
from calico_core.model.ids import check_name
from calico_core.model.keys import (
    HOSTS,
    PROFILES,
    Key,
    ProfileLabelsKey,
    ProfileRulesKey,
    ProfileTagsKey,
    WorkloadEndpointKey,
)
from calico_core.model.rules import Rule, RuleLists

_LISTS = tuple(field.encode_name for field in msgspec.structs.fields(RuleLists))

_ATTEMPTS = 3
_PROFILE_KEYS = (ProfileRulesKey, ProfileTagsKey, ProfileLabelsKey)
_DIRECTIONS = click.Choice(["inbound", "outbound"])


@click.group(cls=NamedGroup, subcommand_metavar="COMMAND | NAME tag|rule COMMAND")
def profile() -> None:
    """Profiles: which traffic the endpoints that name one accept."""


assert isinstance(profile, NamedGroup)


@profile.command()
@click.argument("name", metavar="[NAME]", required=False)
@pass_context
def counters(context: CliContext, name: str | None) -> None:
    """Show how often each rule has matched on this host since it was last written."""

    def is_wanted(key: Key) -> bool:
        return isinstance(key, ProfileRulesKey) and name in {None, key.profile}

    print_counters(context, is_wanted, kind="profile", name=name)


@profile.command()
@click.argument("name")
@pass_context
def add(context: CliContext, name: str) -> None:
    """Create a profile: a tag of its own name, inbound from that tag, outbound to all."""
    check_name(name, field="NAME")
    context.may_create = True
    records = {
        ProfileRulesKey(name): RuleLists(
            id=name,
            inbound_rules=(Rule(action="allow", src_tag=name),),
            outbound_rules=(Rule(action="allow"),),
        ),
        ProfileTagsKey(name): (name,),
        ProfileLabelsKey(name): {},
    }
    if context.records.store.list(f"{PROFILES}{name}/").entries:
        click.echo(f"Profile {name} already exists.")
        return
    preconditions: list[Precondition] = [absent(key.path) for key in records]
    operations: list[Operation] = [Put(key.path, codec.encode(record)) for key, record in records.items()]
    if not context.records.store.transact(preconditions, operations).committed:
        click.echo(f"Profile {name} already exists.")
        return
    click.echo(f"Created profile {name}")


@profile.command()
@click.argument("name")
@click.option("--no-check", "--force", "is_forced", is_flag=True, help="Also when endpoints use it.")
@pass_context
def remove(context: CliContext, name: str, is_forced: bool) -> None:
    """Remove a profile that no endpoint uses."""
    entries = context.records.store.list(f"{PROFILES}{name}/").entries
    if not entries:
        click.echo(f"Profile {name} does not exist: nothing to remove.")
        return
    users = _users(context, name)
    if users and not is_forced:
        raise Refused(
            f"profile {name} is in use by {len(users)} endpoints, among them {users[0]}",
            "take it off them with 'calicoctl endpoint ID profile remove', or give --force",
        )
    preconditions = [Compare(entry.key, entry.mod_revision) for entry in entries]
    if not context.records.store.transact(preconditions, [Delete(entry.key) for entry in entries]).committed:
        raise Conflict(entries[0].key, None)
    click.echo(f"Deleted profile {name}")


@profile.command()
@click.option("--detailed", is_flag=True, help="With the endpoints that use each.")
@pass_context
def show(context: CliContext, detailed: bool) -> None:
    """Show the profiles."""
    keys = (record.key for record in context.records.list(PROFILES))
    found = sorted({key.profile for key in keys if isinstance(key, _PROFILE_KEYS)})
    users = _all_users(context) if detailed or context.output != "table" else {}
    rows = [{"profile": name, "endpoints": users.get(name, [])} for name in found]
    answer(context, rows, {"Name": "profile", **({"Endpoints": "endpoints"} if detailed else {})})


# --- tags --------------------------------------------------------------------------------------


@profile.add_form
@click.group()
def tag() -> None:
    """Tags of a profile: rules elsewhere can name them."""


@tag.command("show")
@click.pass_context
def tag_show(ctx: click.Context) -> None:
    """Show the tags."""
    tags, _ = _read(ctx, ProfileTagsKey(name_of(ctx)), ())
    answer(ctx.obj, [{"tag": name} for name in tags], {"Tag": "tag"})


@tag.command("add")
@click.argument("name", metavar="TAG")
@click.pass_context
def tag_add(ctx: click.Context, name: str) -> None:
    """Add a tag."""
    check_name(name, field="TAG")
    is_changed = _rewrite(ctx, ProfileTagsKey(name_of(ctx)), (), lambda tags: tags if name in tags else (*tags, name))
    click.echo(f"Tag {name} {'added to' if is_changed else 'is on'} profile {name_of(ctx)}")


@tag.command("remove")
@click.argument("name", metavar="TAG")
@click.pass_context
def tag_remove(ctx: click.Context, name: str) -> None:
    """Remove a tag."""

    def without(tags: tuple[str, ...]) -> tuple[str, ...]:
        if name not in tags:
            raise Missing("tag", name, f"tags of the profile: {', '.join(tags) or 'none'}")
        return tuple(other for other in tags if other != name)

    _rewrite(ctx, ProfileTagsKey(name_of(ctx)), (), without)
    click.echo(f"Tag {name} removed from profile {name_of(ctx)}")


# --- rules -------------------------------------------------------------------------------------


@profile.add_form
@click.group()
def rule() -> None:
    """Rules of a profile, evaluated in order; what none of them decides is denied."""


@rule.command("show")
@click.pass_context
def rule_show(ctx: click.Context) -> None:
    """Show the rules, numbered."""
    name = name_of(ctx)
    lists, _ = _read(ctx, ProfileRulesKey(name), RuleLists())
    rows = [
        {
            "profile": name,
            "direction": direction,
            "position": position,
            "text": render_rule(found),
            "rule": codec.to_builtins(found),
        }
        for direction in ("inbound", "outbound")
        for position, found in enumerate(getattr(lists, f"{direction}_rules"), 1)
    ]
    if ctx.obj.output != "table":
        answer(ctx.obj, rows, {})
        return
    for direction in ("inbound", "outbound"):
        click.echo(f"{direction.capitalize()} rules:")
        for row in rows:
            if row["direction"] == direction:
                say(f"{row['position']:4} {row['text']}")


@rule.command("json")
@click.pass_context
def rule_json(ctx: click.Context) -> None:
    """Print the stored object."""
    lists, _ = _read(ctx, ProfileRulesKey(name_of(ctx)), RuleLists())
    click.echo(msgspec.json.format(codec.encode(lists), indent=2).decode())


@rule.command("update")
@click.pass_context
def rule_update(ctx: click.Context) -> None:
    """Replace both lists by the object on standard input."""
    name = name_of(ctx)
    given = codec.decode_json(dict[str, Any], sys.stdin.buffer.read(), what="rules")
    check_fields(given, _LISTS)
    for field in ("inbound_rules", "outbound_rules"):
        if field not in given:
            raise InvalidRequest(field, "give both lists, [] for one without rules: both are replaced")
    try:
        wanted: RuleLists = codec.from_builtins(RuleLists, given)
    except InvalidRequest as error:
        raise with_what_is_right(RuleLists, error) from error
    if wanted.id not in {None, name}:
        raise InvalidRequest("id", f"{wanted.id!r} is not the profile's name {name!r}")
    _rewrite(ctx, ProfileRulesKey(name), RuleLists(), lambda _: msgspec.structs.replace(wanted, id=name))
    click.echo(f"Rules of profile {name} updated")


_words = {"ignore_unknown_options": True, "allow_interspersed_args": True}


@rule.command("add", context_settings=_words)
@click.argument("direction", type=_DIRECTIONS)
@click.option("--at", type=int, metavar="N", help="Position counted from 1; without it, at the end.")
@click.argument("words", nargs=-1, required=True, metavar="RULE...")
@click.pass_context
def rule_add(ctx: click.Context, direction: str, at: int | None, words: tuple[str, ...]) -> None:
    """Add a rule.

    Example: calicoctl profile web rule add inbound allow tcp from tag app to ports 80,443
    """
    wanted = parse_rule(words)

    def with_rule(lists: RuleLists) -> RuleLists:
        rules: tuple[Rule, ...] = getattr(lists, f"{direction}_rules")
        position = len(rules) + 1 if at is None else at
        if not 1 <= position <= len(rules) + 1:
            raise InvalidRequest(
                "--at", f"there are {len(rules)} {direction} rules, so 1 to {len(rules) + 1} (the last appends)"
            )
        if wanted in rules:
            return lists
        changed = (*rules[: position - 1], wanted, *rules[position - 1 :])
        return msgspec.structs.replace(lists, **{f"{direction}_rules": changed})

    if not _rewrite(ctx, ProfileRulesKey(name_of(ctx)), RuleLists(id=name_of(ctx)), with_rule):
        click.echo("Rule already present, skipping.")


@rule.command("remove", context_settings=_words)
@click.argument("direction", type=_DIRECTIONS)
@click.option("--at", type=int, metavar="N", help="Position counted from 1.")
@click.argument("words", nargs=-1, metavar="[RULE...]")
@click.pass_context
def rule_remove(ctx: click.Context, direction: str, at: int | None, words: tuple[str, ...]) -> None:
    """Remove a rule, by position or by its words."""
    if (at is None) == (not words):
        raise InvalidRequest("rule", "give either --at or the words of the rule")
    wanted = parse_rule(words) if words else None

    def without(lists: RuleLists) -> RuleLists:
        rules: tuple[Rule, ...] = getattr(lists, f"{direction}_rules")
        if wanted is not None and wanted not in rules:
            raise Missing("rule", render_rule(wanted))
        index = rules.index(wanted) if wanted is not None else (at or 0) - 1
        if not 0 <= index < len(rules):
            raise InvalidRequest("--at", f"there are {len(rules)} {direction} rules")
        return msgspec.structs.replace(lists, **{f"{direction}_rules": rules[:index] + rules[index + 1 :]})

    _rewrite(ctx, ProfileRulesKey(name_of(ctx)), RuleLists(), without)


# --- reading and rewriting ---------------------------------------------------------------------


def _read(ctx: click.Context, key: Any, default: Any) -> tuple[Any, int]:
    """The record and its revision (0: not there, though the profile is). Raises ``Missing``."""
    found = ctx.obj.records.get(key)
    if found is not None:
        return found.record, found.mod_revision
    if not ctx.obj.records.store.list(f"{PROFILES}{key.profile}/").entries:
        raise Missing("profile", key.profile, f"create it with: calicoctl profile add {key.profile}")
    return default, 0


def _rewrite(ctx: click.Context, key: Any, default: Any, change: Callable[[Any], Any]) -> bool:
    """Compare-and-swap with all checks run again; False when nothing had to change."""
    for _attempt in range(_ATTEMPTS):
        before, revision = _read(ctx, key, default)
        after = change(before)
        if after == before:
            return False
        put = Put(key.path, codec.encode(after))
        if ctx.obj.records.store.transact([Compare(key.path, revision)], [put]).committed:
            return True
    raise Conflict(key.path, None)


def _users(context: CliContext, name: str) -> list[str]:
    return _all_users(context).get(name, [])


def _all_users(context: CliContext) -> dict[str, list[str]]:
    users: dict[str, list[str]] = {}
    for found in context.records.list(HOSTS):
        if isinstance(found.key, WorkloadEndpointKey):
            for name in found.record.profile_ids:
                users.setdefault(name, []).append(f"{found.key.host}/{found.key.endpoint}")
    return users

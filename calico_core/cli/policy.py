"""``calicoctl policy`` and ``calicoctl tier``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Literal

import click

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.failure import Missing, Refused
from calico_core.cli.output import answer, note, say
from calico_core.cli.policy_documents import PolicyDocument, parse_documents
from calico_core.cli.rule_counters import print_counters
from calico_core.cli.rule_words import parse_rule, render_rule
from calico_core.cli.writing import commit, decoded, persist, put_record, remove_record
from calico_core.errors import InvalidRequest, InvalidSelector
from calico_core.interfaces.datastore import (
    MAX_TRANSACTION_OPERATIONS,
    Compare,
    Delete,
    NoneNewer,
    Operation,
    Precondition,
    Put,
)
from calico_core.model import codec
from calico_core.model.ids import check_name, escape
from calico_core.model.keys import TIERS, Key, PolicyKey, TierKey
from calico_core.model.policies import DEFAULT_TIER, Order, Policy, Tier, check_hooks, order_value
from calico_core.model.rules import Rule
from calico_core.model.selectors import parse_selector


@click.group()
def policy() -> None:
    """Policies: rules for the endpoints that a selector matches, asked before profiles, tier by tier."""


@policy.command()
@click.argument("tier_name", metavar="[TIER]", required=False)
@click.argument("name", required=False)
@pass_context
def show(context: CliContext, tier_name: str | None, name: str | None) -> None:
    """Show the policies in the order in which they are asked, or the rules of one."""
    policies, tiers = _policies(context), _tiers(context)
    if tier_name is not None and tier_name not in {DEFAULT_TIER, *tiers, *(key.tier for key in policies)}:
        raise Missing("tier", tier_name, "calicoctl tier show lists them")
    if name is not None:
        found = policies.get(PolicyKey(tier_name or "", name))
        if found is None:
            raise Missing("policy", f"{tier_name}/{name}", "calicoctl policy show lists them")
        _show_one(context, PolicyKey(tier_name or "", name), found)
        return

    def rank(key: PolicyKey) -> tuple[float, str, float, str]:
        tier_record = tiers.get(key.tier, Tier())
        return order_value(tier_record.order), key.tier, order_value(policies[key].order), key.name

    rows = [
        _row(key, policies[key]) for key in sorted(policies, key=rank) if tier_name is None or key.tier == tier_name
    ]
    columns = {
        "Tier": "tier",
        "Name": "name",
        "Order": "order",
        "Selector": "selector",
        "Types": "types",
        "Inbound": "inbound_count",
        "Outbound": "outbound_count",
        "Kind": "kind",
    }
    answer(context, rows, columns)


@policy.command()
@click.option("-f", "--file", "path", metavar="FILE", required=True, help="JSON or YAML; '-' is standard input.")
@click.option("--dry-run", is_flag=True, help="Say what would change and write nothing.")
@pass_context
def apply(context: CliContext, path: str, dry_run: bool) -> None:
    """Create or replace policies: documents {tier, name, policy}. Without a tier: 'default'."""
    documents = parse_documents(_text_of(path))
    context.may_create = True
    for start in range(0, len(documents), MAX_TRANSACTION_OPERATIONS):
        part = documents[start : start + MAX_TRANSACTION_OPERATIONS]
        for document, done in zip(part, _apply(context, part, is_dry=dry_run), strict=True):
            click.echo(f"policy {document.key.tier}/{document.key.name} {done}{' (dry run)' if dry_run else ''}")


@policy.command()
@click.argument("tier_name", metavar="TIER")
@click.argument("name")
@click.option("--selector", metavar="EXPR", required=True, help="Whom it is for; 'all()' is everyone.")
@click.option("--order", metavar="N", help="Lower is asked first; without it after all that have one.")
@click.option("--inbound", metavar="RULE", multiple=True, help="As 'profile NAME rule add' takes it; repeatable.")
@click.option("--outbound", metavar="RULE", multiple=True, help="The same.")
@click.option("--types", metavar="LIST", help="ingress, egress or both, with a comma; without it both.")
@click.option("--apply-on-forward", is_flag=True, help="At host endpoints: for forwarded traffic too.")
@click.option("--untracked", is_flag=True, help="For host endpoints alone: before connections are tracked.")
@click.option("--pre-dnat", is_flag=True, help="For host endpoints alone: before destinations are translated.")
@click.option("--staged", is_flag=True, help="Counted, not enforced.")
@pass_context
def add(
    context: CliContext,
    tier_name: str,
    name: str,
    selector: str,
    order: str | None,
    inbound: tuple[str, ...],
    outbound: tuple[str, ...],
    types: str | None,
    apply_on_forward: bool,
    untracked: bool,
    pre_dnat: bool,
    staged: bool,
) -> None:
    """Create a policy, or replace it. One before DNAT is of type ingress without being told."""
    check_name(tier_name, field="TIER")
    check_name(name, field="NAME")
    try:
        parse_selector(selector)
    except InvalidSelector as error:
        raise InvalidRequest("--selector", str(error)) from error
    found = Policy(
        selector=selector,
        order=_order(order),
        inbound_rules=_rules(inbound, "--inbound"),
        outbound_rules=_rules(outbound, "--outbound"),
        types=_types("ingress" if types is None and pre_dnat else types),
        apply_on_forward=apply_on_forward,
        untracked=untracked,
        pre_dnat=pre_dnat,
        staged=staged,
    )
    check_hooks(found)
    context.may_create = True
    (done,) = _apply(context, [PolicyDocument(PolicyKey(tier_name, name), found)], is_dry=False)
    click.echo(f"policy {tier_name}/{name} {done}")


@policy.command()
@click.argument("tier_name", metavar="TIER")
@click.argument("name")
@click.option("--ignore-missing", is_flag=True, help="It is fine if there is none.")
@pass_context
def remove(context: CliContext, tier_name: str, name: str, ignore_missing: bool) -> None:
    """Remove a policy."""
    if remove_record(context, PolicyKey(tier_name, name)):
        click.echo(f"policy {tier_name}/{name} removed")
    elif ignore_missing:
        click.echo(f"policy {tier_name}/{name} does not exist: nothing to remove")
    else:
        raise Missing("policy", f"{tier_name}/{name}", "calicoctl policy show lists them")


# --- tiers -------------------------------------------------------------------------------------------


@click.group()
def tier() -> None:
    """Tiers: asked in order; what a tier with policies for an endpoint does not decide, it denies or passes on."""


@policy.command()
@click.argument("tier_name", metavar="[TIER]", required=False)
@click.argument("name", required=False)
@pass_context
def counters(context: CliContext, tier_name: str | None, name: str | None) -> None:
    """Show how often each rule has matched on this host since it was last written."""

    def is_wanted(key: Key) -> bool:
        return isinstance(key, PolicyKey) and tier_name in {None, key.tier} and name in {None, key.name}

    chosen = None if tier_name is None else tier_name if name is None else f"{tier_name}/{name}"
    print_counters(context, is_wanted, kind="policy", name=chosen)


@tier.command("show")
@pass_context
def tier_show(context: CliContext) -> None:
    """Show the tiers in order."""
    tiers, policies = _tiers(context), _policies(context)
    # one with policies stands, last, although nobody has described it
    known = {**{key.tier: Tier() for key in policies}, **tiers}
    rows = [
        {
            "tier": name,
            "order": record.order,
            "default_action": record.default_action,
            "policies": sum(key.tier == name for key in policies),
        }
        for name, record in sorted(known.items(), key=lambda each: (order_value(each[1].order), each[0]))
    ]
    columns = {"Name": "tier", "Order": "order", "Default action": "default_action", "Policies": "policies"}
    answer(context, rows, columns)


@tier.command("add")
@click.argument("name")
@click.option("--order", metavar="N", help="Lower is asked first; without it after all that have one.")
@click.option("--default-action", type=click.Choice(["deny", "pass"]), default="deny", show_default=True)
@pass_context
def tier_add(context: CliContext, name: str, order: str | None, default_action: str) -> None:
    """Create a tier, or give it this order and default action."""
    check_name(name, field="NAME")
    fields: dict[str, Any] = {"order": _order(order), "defaultAction": default_action}
    wanted: Tier = codec.from_builtins(Tier, fields)
    click.echo(f"tier {name} {put_record(context, TierKey(name), wanted)}")


@tier.command("remove")
@click.argument("name")
@click.option("--ignore-missing", is_flag=True, help="It is fine if there is none.")
@pass_context
def tier_remove(context: CliContext, name: str, ignore_missing: bool) -> None:
    """Remove a tier that has no policies."""
    key = TierKey(name)
    prefix = f"{TIERS}{escape(name)}/policy/"

    def attempt() -> bool | None:
        entry = context.records.store.get(key.path)
        policies = context.records.store.list(prefix)
        if policies.entries:
            raise Refused(
                f"tier {name} has {len(policies.entries)} policies",
                f"remove them first: calicoctl policy show {name} lists them",
            )
        if entry is None:
            return False
        unchanged = Compare(key.path, entry.mod_revision)
        return commit(context, [unchanged, NoneNewer(prefix, policies.revision)], [Delete(key.path)])

    if persist(attempt, key.path):
        click.echo(f"tier {name} removed")
    elif ignore_missing:
        click.echo(f"tier {name} does not exist: nothing to remove")
    else:
        raise Missing("tier", name, "calicoctl tier show lists them")


# --- writing -----------------------------------------------------------------------------------------


def _apply(context: CliContext, documents: list[PolicyDocument], *, is_dry: bool) -> list[str]:
    """One transaction: ``created``, ``updated`` or ``unchanged`` for each."""
    done: list[str] = []

    def attempt() -> bool | None:
        done.clear()
        for name in sorted({document.key.tier for document in documents} - {DEFAULT_TIER}):
            if context.records.store.get(TierKey(name).path) is None:
                raise Missing("tier", name, f"create it with: calicoctl tier add {name} --order N")
        preconditions: list[Precondition] = []
        operations: list[Operation] = []
        for key, wanted in documents:
            entry = context.records.store.get(key.path)
            if entry is not None and decoded(key, entry.value) == wanted:
                done.append("unchanged")
                continue
            done.append("created" if entry is None else "updated")
            preconditions.append(Compare(key.path, 0 if entry is None else entry.mod_revision))
            operations.append(Put(key.path, codec.encode(wanted)))
        return True if is_dry or not operations else commit(context, preconditions, operations)

    persist(attempt, documents[0].key.path)
    return done


def _order(text: str | None) -> Order:
    if text is None or text == "default":
        return None
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise InvalidRequest("--order", f"{text!r} is not a number")
    return number


def _rules(texts: tuple[str, ...], field: str) -> tuple[Rule, ...]:
    found: list[Rule] = []
    for text in texts:
        try:
            found.append(parse_rule(shlex.split(text)))
        except ValueError as error:
            raise InvalidRequest(field, f"{text!r}: {error}") from error
        except InvalidRequest as error:
            raise InvalidRequest(field, error.reason) from error
    return tuple(found)


def _types(text: str | None) -> tuple[Literal["ingress", "egress"], ...] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not set(words) <= {"ingress", "egress"}:
        raise InvalidRequest("--types", f"{text!r} is not ingress, egress or ingress,egress")
    types: tuple[Literal["ingress", "egress"], ...] = ("ingress", "egress")
    return tuple(each for each in types if each in words)


def _text_of(path: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode()
    except OSError as error:
        raise InvalidRequest("--file", f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise InvalidRequest("--file", f"{path} is not UTF-8 text") from None


# --- reading -----------------------------------------------------------------------------------------


def _policies(context: CliContext) -> dict[PolicyKey, Policy]:
    found = {each.key: each.record for each in context.records.list(TIERS) if isinstance(each.key, PolicyKey)}
    for path, reason in sorted(getattr(context.records, "bad_records", {}).items()):
        if path.startswith(TIERS):
            note(f"not in force, because it does not decode: {reason}")
    return found


def _tiers(context: CliContext) -> dict[str, Tier]:
    return {each.key.tier: each.record for each in context.records.list(TIERS) if isinstance(each.key, TierKey)}


def _row(key: PolicyKey, found: Policy) -> dict[str, Any]:
    flags = ("staged", "untracked", "pre_dnat", "apply_on_forward")
    return {
        "tier": key.tier,
        "name": key.name,
        "order": found.order,
        "selector": found.selector,
        "types": list(found.types) if found.types is not None else ["ingress", "egress"],
        "inbound_count": len(found.inbound_rules),
        "outbound_count": len(found.outbound_rules),
        "kind": ", ".join(name for name in flags if getattr(found, name)) or "normal",
        "policy": codec.to_builtins(found),
    }


def _show_one(context: CliContext, key: PolicyKey, found: Policy) -> None:
    if context.output != "table":
        answer(context, [_row(key, found)], {})
        return
    order = "last" if found.order is None else found.order
    say(f"Policy {key.tier}/{key.name}, order {order}, selector {found.selector or 'all()'}")
    for direction, rules in (("Inbound", found.inbound_rules), ("Outbound", found.outbound_rules)):
        click.echo(f"{direction} rules:")
        for position, rule in enumerate(rules, 1):
            say(f"{position:4} {render_rule(rule)}")

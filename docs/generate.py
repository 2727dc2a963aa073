"""Writes the reference pages that can be read off the code: ``python docs/generate.py``.

``tests/unit/docs/test_generated.py`` fails when a committed page differs from what this gives.
"""

from __future__ import annotations

import datetime as dt
import importlib
import inspect
import re
import sys
import textwrap
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from netaddr import EUI, IPAddress, IPNetwork

from calico_core import errors
from calico_core.cli import failure
from calico_core.cli.main import COMMANDS, calicoctl
from calico_core.cli.named import NamedGroup
from calico_core.model import keys
from calico_core.plugin_host import namespaces
from calico_core.setting_fields import FIELDS, IGNORED
from calico_core.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
_NOTE = "<!-- written by docs/generate.py; do not edit -->"

MEANINGS = {
    "node_name": "this host's name in every key; else what `STATE_DIRECTORY/nodename` remembers, else the host name",
    "datastore": "`etcd3://HOST:PORT,…`, `etcd3s://…` (TLS), `sqlite:///PATH` or `memory://NAME`; "
    "without it `ETCD_ENDPOINTS`, or `ETCD_AUTHORITY` with `ETCD_SCHEME`, mean etcd",
    "socket": "where shims and calicoctl reach the node",
    "run_directory": "what may go at a reboot: lock, saved settings, BIRD's files",
    "state_directory": "what stays: the node's name",
    "dataplane_driver": "a name from [`calico.dataplanes`](entry-points.md), or `auto`: nftables, or iptables where "
    "the kernel has no nftables; the reference system's words `Enabled` (nftables), `Disabled` (iptables) and `Auto` "
    "too. At a change, policy of the other one stays until the new one's is complete. One that the datastore names and "
    "this host cannot have is logged, and `auto` counts",
    "routing_driver": "a name from [`calico.routing`](entry-points.md)",
    "integrations": "names, separated by commas; `-NAME` leaves one out; empty means all that are installed",
    "ip": "an IPv4 address of this host, `autodetect` or `none`",
    "ip6": "an IPv6 address of this host, `autodetect` or `none`",
    "as_number": "this host's AS; empty means the global one",
    "no_default_pools": "create no pools at the first start",
    "pool_v4": "the IPv4 pool made at the first start, or `none`",
    "pool_v6": "the IPv6 pool made at the first start, or `none`",
    "pool_v4_nat_outgoing": "the IPv4 pool made at the first start masquerades what leaves all pools",
    "etcd_ca_file": "certificates that etcd's is checked against; naming some switches TLS on. With TLS and without "
    "them those count that the host trusts (`SSL_CERT_FILE`, or `/etc/ssl/certs/ca-certificates.crt`). `none`, which "
    "in the reference system checks nothing, is refused with TLS",
    "etcd_cert_file": "client certificate; naming one switches TLS on, too",
    "etcd_key_file": "its key",
    "etcd_username": "user of etcd",
    "etcd_password": "its password",
    "interface_prefix": "how names of workload interfaces begin: one prefix, or several separated by commas, of which "
    "new interfaces get the first. An interface that begins with none of them is no workload's: its endpoint has the "
    "status `error`, and the routes of ours to one that we made go",
    "endpoint_to_host": "traffic of workloads to their host: `DROP`; `RETURN` (as the workload's outbound policy "
    "says, then the host's own rules); `ACCEPT`",
    "ipv6_support": "`true`, `false` or `auto`: as the kernel has it, and the log says why not (`ipv6.off`). "
    "Without it workloads have none, and an interface with a host endpoint lets neighbour discovery and fail-safe "
    "ports pass of the host's own, whatever policy says",
    "deny_action": "what a denial does: `DROP`, or `REJECT`, which tells the sender",
    "drop_override": "instead of every denial: `DROP` (none), `LOG-and-DROP`, and `ACCEPT` and `LOG-and-ACCEPT`, which "
    "switch policy off. A value that cannot be used counts as the default",
    "failsafe_inbound": "ports of the host that no policy of its host endpoints closes: `PORT` (TCP), `PROTOCOL:PORT` "
    "or `PROTOCOL:CIDR:PORT`, separated by commas; `none` for none",
    "failsafe_outbound": "and ports of others that they do not close to the host",
    "metadata_address": "an IPv4 address, or a name that has one, that stands behind 169.254.169.254:80 for "
    "workloads; `none`. The reference system's default is 127.0.0.1; ours is none, since it takes the metadata "
    "service of a cloud away",
    "metadata_port": "and the port there",
    "chain_insert": "`Insert`: our rules come before those of others in the kernel's chains; `Append`: after them, and "
    "what others accept there passes no policy. iptables alone: with nftables every table sees every packet, whatever "
    "another one accepted, in the order of the priorities of its hooks, and this changes nothing",
    "allow_ipip": "workloads may send IPIP packets, as far as policy lets them. A host that takes them for those of a "
    "host (as where they are translated to the host's address on their way) believes what is inside",
    "allow_vxlan": "the same for VXLAN (UDP port 4789)",
    "external_nodes": "CIDRs, separated by commas, of hosts that are none of ours and whose IPIP and VXLAN packets "
    "this host takes all the same; empty or `none`: none",
    "no_invalid_check": "do not drop what connection tracking calls invalid; policy judges it as it does a new "
    "connection. For hosts where answers come by another interface than the questions went",
    "filter_allow": "what becomes of a packet that policy allows, forwarded or to a host endpoint: `ACCEPT`, or "
    "`RETURN`, the rules that others have after ours in the kernel's chain decide, and then the chain's own policy. "
    "iptables alone: with nftables the tables of others are asked whatever ours accepts, and both mean the same",
    "mangle_allow": "the same for what policy before translation allows, in the mangle table",
    "route_source_v4": "the address that the host itself prefers for what it sends to workloads, one of its own; empty "
    "or `none`: as the kernel chooses",
    "route_source_v6": "the same for IPv6",
    "nat_port_range": "the source ports that TCP and UDP get when they are translated on their way out of the pools, "
    "`FIRST:LAST`; empty: as the kernel chooses",
    "nat_outgoing_address": "the address that what leaves the pools gets instead of that of the interface it leaves "
    "by; an IPv4 address says nothing about IPv6, and the other way round; empty or `none`: none",
    "nat_exclusions": "where what leaves a pool is not translated: `IPPoolsOnly`, or `IPPoolsAndHostIPs`, addresses of "
    "hosts too",
    "nat_interfaces": "translate only what leaves by this interface; a `+` at the end stands for the rest of a name, "
    "as in `eth+`, on both dataplanes; empty or `none`: any",
    "max_set_size": "how many members a set of addresses holds at most. Rules that name a larger one "
    "[deny until it has shrunk](../adr/0011-sets-beyond-their-limit-are-closed.md). A value that cannot be used counts "
    "as the default",
    "log_prefix": "how the kernel's log lines of rules with the action `log` begin, where the rule names nothing",
    "log_limit": "how many such lines a rule writes at most, `10/second` or `10` a second, or a `minute`, `hour` or "
    "`day`; empty or 0: no limit",
    "log_burst": "and how many at once",
    "denied_group": "the NFLOG group that denied packets are told to; 0: none, and nobody can watch them",
    "mark_mask": "bits of a packet's mark that are ours, two at least. A value that cannot be used counts as the "
    "default",
    "route_protocol": "the number that marks our routes; only such routes are removed",
    "route_sync_disabled": "the agent makes and removes no routes to workloads (an attach makes its own): somebody "
    "else keeps them",
    "ip_forwarding": "`Enabled`: the node makes the host a router; `Disabled`: it leaves the kernel's settings for "
    "that alone, and until somebody makes them workloads reach their own host at most",
    "netlink_timeout_s": "seconds the kernel may take to answer the agent",
    "excluded_interfaces": "names and `/regular expressions/` of interfaces whose addresses make no host endpoint "
    "theirs, as the one that holds the addresses of services; the host endpoint of all interfaces is not for them "
    "either, and `autodetect` takes no address of theirs (as far as environment and file say so). A host endpoint that "
    "names one is in force there",
    "mtu_interfaces": "a regular expression for names of the host's own interfaces: the smallest MTU of those that are "
    "up is the network's, and interfaces of workloads get it less what tunnels of pools need; empty: tunnels go by the "
    "interface with the host's address, and without them the kernel's own MTU counts",
    "ignore_loose_rpf": "start although `net.ipv4.conf.all.rp_filter` is 2, which weakens the check of workloads' "
    "source addresses",
    "source_spoofing": "`Any`: workloads may also send from the prefixes that their endpoints allow "
    "(`cni.projectcalico.org/allowedSourcePrefixes`); `Disabled`: from their own addresses only, and a warning tells "
    "whose prefixes are ignored",
    "floating_ips": "`Disabled`: floating addresses that records name lead nowhere on this host",
    "refresh_interval_s": "seconds between two comparisons of the kernel with what we want; 0: never",
    "route_refresh_interval_s": "the same for routes; one comparison covers all, so the shortest interval that is "
    "given counts for all; 0: none is given",
    "link_refresh_interval_s": "the same for settings of interfaces",
    "set_refresh_interval_s": "the same for address sets",
    "address_poll_s": "seconds between two looks at the host's own addresses, which host endpoints are found by, in "
    "case that the kernel did not tell of a change; 0: at the start alone, and as the kernel tells. A value that "
    "cannot be used counts as the default",
    "reporting_interval_s": "seconds between two reports of liveness; 0 or less: none",
    "reporting_ttl_s": "seconds such a report lasts; no more than `reporting_interval_s`: 2.5 times that",
    "endpoint_reporting": "write the status of each endpoint to the datastore",
    "endpoint_reporting_delay_s": "seconds between two writes of such statuses at least, give or take a tenth; a value "
    "that cannot be used counts as the default",
    "endpoint_files": "where the directory `endpoint-status` is, with a file for each endpoint of this host whose "
    "policy is in the kernel, as CNI plugins of the reference system wait for them; empty: in `run_directory`; `none`: "
    "no files",
    "established_flows": "`cut`: connections that a change of policy denies end with it; `keep`: they go on until they "
    "end by themselves, as in the reference system. None is cut where `drop_override` switches policy off",
    "confirm_removals_after_s": "how long the datastore must say the same before a "
    "[sudden loss of records](../how-to/sudden-loss.md) is believed, seconds; 0: never without `confirm-removals`",
    "collector_interval_s": "seconds between two looks for [leaked addresses](../how-to/leaked-addresses.md); 0: never",
    "collector_grace_s": "seconds an address must have been without any sign of life before it is freed",
    "health_enabled": "serve `/liveness`, `/readiness` and `/health`",
    "loop_limit_s": "seconds that one turn of any loop of the node may take, after that the node counts as dead; and "
    "that the kernel may refuse policy as a whole, after that the node ends",
    "loop_limits": "other limits for single loops: `NAME=DURATION,…` with names of components on `/health` (`engine`, "
    "`routing`, `tunnels`, `reporter`) or of the reference system's main loops, as `engine=3m`",
    "health_host": "the address they are served on",
    "health_port": "and the port; 0: not at all",
    "metrics_enabled": "serve `/metrics` for Prometheus",
    "metrics_host": "the address they are served on",
    "metrics_port": "and the port; 0: not at all",
    "metrics_cert_file": "the certificate `/metrics` is served with by TLS, in PEM; `none`: plain HTTP",
    "metrics_key_file": "its key",
    "metrics_ca_file": "certificates that those of clients are checked against",
    "metrics_client_auth": "with TLS: `RequireAndVerifyClientCert` (so does `RequireAnyClientCert`), "
    "`VerifyClientCertIfGiven`, `NoClientCert` (so does `RequestClientCert`)",
    "libnetwork_plugin_dir": "where Docker looks for plugin sockets",
    "libnetwork_scope": "`global` or `local`, as Docker is told",
    "docker_host": "Docker's own socket",
    "mesos_strict": "refuse a cleanup of an unknown container, and an empty host name",
    "kubeconfig": "how the [policy controller](../how-to/kubernetes.md) reaches the Kubernetes API: the path of a "
    "kubeconfig, or `in-cluster`; empty: there is no Kubernetes",
    "cni_kubeconfig": "the `calico-kubeconfig` that [`calicoctl cni install`](../how-to/install-cni.md) wrote, as the "
    "node sees it: it gets the token of the pod's service account whenever that changes; empty: none",
    "cni_service_account": "a service account (`NAME` in the pod's namespace, or `NAMESPACE/NAME`) whose tokens the "
    "node asks of the Kubernetes API for `cni_kubeconfig`, with a day to live and anew after two thirds of it; empty: "
    "the pod's own token goes there",
    "mtu_bytes": "MTU of workloads' interfaces (CNI, Docker, Mesos), where the network names none; 0: what "
    "`MTUIfacePattern` and the tunnels of pools leave room for, and without either as the kernel makes them",
    "log_level": "what goes to standard error: `debug`, `info`, `warning`, `error`, `critical` (the node ends) or "
    "`none`",
    "log_file": "the absolute path of a file for the log, or `none`; opened again when it was moved away and at "
    "SIGHUP. The reference system's default is `/var/log/calico/felix.log`; ours is none, since the supervisor keeps "
    "what goes to standard error",
    "log_file_level": "what goes there, as above",
    "log_syslog_level": "what goes to syslog (`/dev/log`), as above",
    "log_format": "`console` or `json`",
}


def pages() -> dict[str, str]:
    """File name in ``docs/reference`` → text."""
    return {
        "settings.md": _settings(),
        "datastore-keys.md": _datastore_keys(),
        "calicoctl.md": _calicoctl(),
        "errors.md": _errors(),
        "entry-points.md": _entry_points(),
    }


def _page(title: str, opening: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", _NOTE, *(_wrapped(part) for part in (opening, *parts))]) + "\n"


def _wrapped(part: str) -> str:
    """Prose filled; tables, sections and blocks as they are."""
    return part if part.startswith(("|", "#", "```")) else textwrap.fill(part, 120, break_on_hyphens=False)


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _prose(text: str | None) -> str:
    """A docstring as Markdown."""
    plain = re.sub(r":\w+:`~?\.?([^`]*)`", r"`\1`", inspect.cleandoc(text or ""))
    return plain.replace("``", "`")


def _one_line(text: str | None) -> str:
    return " ".join(_prose(text).split())


# --- settings ------------------------------------------------------------------------------------------------


def _settings() -> str:
    defaults = {field.name: field.default for field in msgspec.structs.fields(Settings)}
    rows = [
        (
            field.name,
            ", ".join(f"`{name}`" for name in field.environment),
            ", ".join([*(f"`{name}`" for name in field.config), *(f"`{name}` (file)" for name in field.local_names)]),
            _shown(defaults[field.name]),
            MEANINGS[field.name],
        )
        for field in FIELDS
    ]
    live = ", ".join(f"`{name}`" for field in FIELDS if field.is_live for name in field.config)
    return _page(
        "Settings",
        "For people who run a node. A setting comes from the first of these that has it: the environment (where "
        "several variables are named, the first that is set), the file `/etc/calico/felix.cfg`, the datastore under "
        "`/calico/v1/host/HOST/config/NAME`, then under `/calico/v1/config/NAME`, and the default. An empty value "
        "counts as not set.",
        "The file is INI: `NAME = VALUE` lines with the names of the first or the third column in any case, sections "
        "for the eye alone. `calico-node run -c FILE` or `CALICO_CONFIG_FILE` name another. Names of the datastore are "
        "written exactly so. What is needed before the datastore (its place, the host's name, and all without a name "
        "in the third column, or with one marked `(file)`) comes from environment and file alone; `EtcdEndpoints`, or "
        "`EtcdAddr` with `EtcdScheme`, "
        "in the file mean what `ETCD_ENDPOINTS` and `ETCD_AUTHORITY` with `ETCD_SCHEME` mean in the environment.",
        "`calico-node check-config` prints what environment and file say, `calicoctl config show` adds the datastore; "
        "both with the origin of each value and what it comes before. A value that cannot be used ends the start with "
        "its name, its origin and what would be right. In the datastore it is logged and counts as not there, and the "
        "others hold; but a stored `InterfacePrefix` that cannot be one ends the start, because under another prefix "
        "workloads would be without policy. A name that nothing reads is warned of once.",
        f"A running node follows {live} in the datastore. When another of its settings changes there, and "
        "is not what the node runs with, the node starts itself anew in place two seconds later, as `calicoctl node "
        "restart` does; policy stays in force and calls wait meanwhile. A value that cannot be used changes nothing on "
        "a running node; but where the table says that the default counts instead, the node starts anew with it.",
        _table(("Setting", "Environment", "Datastore and file", "Default", "Meaning"), rows),
        "## Names that change nothing",
        "The reference system knows these as well. They are read over with a warning that says why.",
        _table(("Name", "Why"), [(f"`{name}`", reason) for name, reason in IGNORED.items()]),
    )


def _shown(value: Any) -> str:
    if value is True or value is False:
        return str(value).lower()
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`" if value not in {"", ()} else ""


# --- keys ----------------------------------------------------------------------------------------------------

_EXAMPLES: dict[Any, Any] = {IPNetwork: IPNetwork("10.65.0.0/26"), IPAddress: IPAddress("10.0.0.1"), int: 4}


def _datastore_keys() -> str:
    found = [
        each for each in vars(keys).values() if inspect.isclass(each) and issubclass(each, keys.Key)
        and each is not keys.Key
    ]  # fmt: skip
    records: dict[type, None] = {}
    rows = []
    for key in found:
        fields = msgspec.structs.fields(key)
        example = key(*(_EXAMPLES.get(field.type, field.name.upper()) for field in fields))
        _collect(key.record_type, records)
        has_own_text = key.__doc__ and key.__doc__ != keys.Key.__doc__
        rows.append((f"`{example.path}`", _type_text(key.record_type), _one_line(key.__doc__) if has_own_text else ""))
    return _page(
        "Datastore keys",
        "For people who read or write the datastore beside us. Words in capitals stand for names, and addresses for "
        "others of their kind; IPv6 has the same keys with `v6`. In a name `%` is written `%25` and `/` is written "
        "`%2f`. A value is JSON, or text where the table says so. Unknown fields are ignored on read; in a rule an "
        "unknown field makes the list invalid.",
        _table(("Key", "Value", ""), rows),
        *(_record(record) for record in records),
    )


def _record(record: type) -> str:
    rows = []
    for field in msgspec.structs.fields(record):
        default = "required" if field.required else ""
        if field.default not in {msgspec.NODEFAULT, None, "", ()} if _is_plain(field.default) else False:
            default = _shown(field.default)
        rows.append((f"`{field.encode_name}`", _type_text(field.type), default))
    return f"## {record.__name__}\n\n{_prose(record.__doc__)}\n\n" + _table(("Field", "Type", "Default"), rows)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | tuple) and not (isinstance(value, tuple) and value)


def _collect(kind: Any, found: dict[type, None]) -> None:
    """The records a type leads to, outermost first."""
    if inspect.isclass(kind) and issubclass(kind, msgspec.Struct) and kind not in found:
        found[kind] = None
        for field in msgspec.structs.fields(kind):
            _collect(field.type, found)
    for argument in typing.get_args(kind):
        _collect(argument, found)


_NAMES: dict[Any, str] = {
    str: "text", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "any JSON",
    IPNetwork: "CIDR", IPAddress: "address", EUI: "MAC", dt.datetime: "time (ISO 8601)", Ellipsis: "",
}  # fmt: skip


def _type_text(kind: Any) -> str:
    if kind in _NAMES:
        return _NAMES[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _type_text(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{argument}`" if argument != "" else "empty" for argument in arguments)
    if origin in {typing.Union, types.UnionType}:
        # unset is how the code says "not written"
        return " or ".join(_type_text(argument) for argument in arguments if argument is not msgspec.UnsetType)
    if origin is tuple:
        return f"list of {_type_text(arguments[0])}"
    if origin is dict:
        return f"object: {_type_text(arguments[0])} → {_type_text(arguments[1])}"
    return f"[{kind.__name__}](#{kind.__name__.lower()})"


# --- calicoctl -----------------------------------------------------------------------------------------------


def _calicoctl() -> str:
    context = click.Context(calicoctl, info_name="calicoctl")
    commands = {name: _load(target) for name, (target, _) in COMMANDS.items()}
    commands |= {name: _load(target) for name, target in _project()["entry-points"]["calico.commands"].items()}
    parts = [
        part for name, command in sorted(commands.items()) for part in _command(command, f"calicoctl {name}", context)
    ]
    return _page(
        "calicoctl",
        "For operators. The datastore is the one of `--datastore`, else of `CALICO_DATASTORE`, else the one that the "
        "node of this host uses.",
        _table(("Exit code", "Meaning"), _exit_codes()),
        "## Options of every command\n\n" + _options(calicoctl, context),
        *parts,
    )


def _exit_codes() -> list[tuple[str, ...]]:
    text = (importlib.import_module("calico_core.cli.main").main.__doc__ or "").partition(":")[2].strip().rstrip(".")
    return [(code, meaning) for code, _, meaning in (part.strip().partition(" ") for part in text.split(","))]


def _load(target: str) -> click.Command:
    module, _, attribute = target.partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


def _command(command: click.Command, path: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    if isinstance(command, click.Group):
        yield f"## {path}\n\n{_prose(command.help)}"
        for name, child in command.commands.items():
            yield from _command(child, f"{path} {name}", context)
        if isinstance(command, NamedGroup):
            name = "ID" if path.endswith("endpoint") else "NAME"
            for form, group in command.forms.items():
                for verb, child in group.commands.items():
                    yield from _command(child, f"{path} {name} {form} {verb}", context)
        return
    pieces = [piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]"]
    options = _options(command, context)
    usage = " ".join([path, *(["[OPTIONS]"] if options else []), *pieces])
    level = "##" if path.count(" ") == 1 else "###"
    yield "\n\n".join(filter(None, [f"{level} {path}", f"`{usage}`", _prose(command.help), options]))


def _options(command: click.Command, context: click.Context) -> str:
    rows = []
    for param in command.params:
        if not isinstance(param, click.Option) or param.name == "help":
            continue
        names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
        value = "" if param.is_flag else f" {_value(param, context)}"
        given = param.default if isinstance(param.default, tuple) else (param.default,)
        default = f" Default: `{' '.join(map(str, given))}`." if param.show_default and not param.is_flag else ""
        rows.append((names + value, f"{param.help or ''}{default}".strip()))
    return _table(("Option", ""), rows) if rows else ""


def _value(param: click.Option, context: click.Context) -> str:
    if isinstance(param.type, click.Choice):
        return " or ".join(f"`{choice}`" for choice in param.type.choices)
    return param.make_metavar(context)


# --- errors --------------------------------------------------------------------------------------------------


def _errors() -> str:
    from calico_cni.errors import code_of

    tree = inspect.cleandoc((errors.__doc__ or "").partition("::")[2])
    rows = []
    for kind in vars(errors).values():
        if not inspect.isclass(kind) or not issubclass(kind, errors.CalicoError):
            continue
        if kind is errors.NotReady or not kind.__subclasses__():
            found = kind.__new__(kind)
            code, cni = failure.exit_code(found), code_of(found, "1.0.0")
            rows.append((f"`{kind.__name__}`", str(code), str(cni), _one_line(kind.__doc__)))
    return _page(
        "Errors",
        "For people who read an error, or write code that meets one. Every failure is one of this tree; a class "
        "carries what its text is made from.",
        f"```\n{tree}\n```",
        "A retryable one may succeed later without a change by the caller.",
        "## What the caller is told",
        _table(("Error", "`calicoctl` exits with", "CNI code", "Meaning"), rows),
        "CNI: a runtime that speaks a version before 0.4.0 is told 100 where the table has a code from 3 to 99. Codes "
        "of calls that violate the protocol: 1 unknown version, 2 a legal field that is not served, 4 environment, "
        "6 not JSON, 8 namespace. STATUS: 50 an ADD "
        "would not be served now, 51 nor is policy sure to follow for what is attached.",
        "Mesos: the hook exits with 1 and `error` in its reply holds the sentence, whatever the class.",
        "Docker: the text of the error, with HTTP status 400 for what the request has wrong and 500 for the rest.",
    )


# --- entry points --------------------------------------------------------------------------------------------


def _entry_points() -> str:
    declared = _project()["entry-points"]
    rows = []
    for namespace, points in sorted(declared.items()):
        demanded = namespaces.DEMANDED.get(namespace)
        kind = f"subclass of `{demanded.__module__}.{demanded.__qualname__}`" if demanded else "`click.Command`"
        rows.append((f"`{namespace}`", kind, ", ".join(f"`{name}`" for name in sorted(points))))
    return _page(
        "Entry points",
        "For people who write a driver, an integration or a command. Each namespace is a group of Python entry points; "
        "what an entry point leads to is loaded by name, checked against the class in the table, and used.",
        _table(("Namespace", "Leads to", "Shipped"), rows),
        "A datastore driver is chosen by the scheme of the URL (`etcd3s` is `etcd3` over TLS); dataplane and routing "
        "by a [setting](settings.md). All integrations that are installed are loaded unless `CALICO_INTEGRATIONS` "
        "says otherwise: one that is broken, or written for another `API_VERSION`, is reported by `calicoctl status` "
        "and stops nothing.",
        "The options `--output`, `--datastore` and `--debug` are the whole tool's, also behind a command's name: a "
        "command reads them from its root context's `obj`, a `calico_core.cli.context.CliContext`, and prints with its "
        "`answer_one`.",
        "How to write one: [write-an-integration](../how-to/write-an-integration.md).",
    )


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def main(say: Callable[[str], Any] = sys.stdout.write) -> None:
    for name, text in pages().items():
        path = REFERENCE / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            say(f"wrote {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()

"""``calicoctl``: a lazy table of commands. Importing this must stay cheap: nothing but click and what it needs.

A command is imported when it is invoked, never to print the list; third parties add commands through the
``calico.commands`` entry points, whose names come from metadata alone.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "datastore": ("calico_core.cli.datastore:datastore", "The whole store: export, import, migrate."),
    "config": ("calico_core.cli.config:config", "Settings: their values, where each comes from, and changing them."),
    "denied": ("calico_core.cli.denied:denied", "Watch the packets that this host denies, and why."),
    "endpoint": ("calico_core.cli.endpoint:endpoint", "Show endpoints and change their profiles."),
    "explain": ("calico_core.cli.explain:explain", "Would this flow pass, and which rule decides?"),
    "host-endpoint": (
        "calico_core.cli.host_endpoint:host_endpoint",
        "Host endpoints: interfaces of hosts under policy.",
    ),
    "ipam": ("calico_core.cli.ipam:ipam", "Show and release addresses."),
    "lab": ("calico_core.cli.lab:lab", "A laboratory of hosts in network namespaces."),
    "network-set": ("calico_core.cli.network_set:network_set", "Network sets: CIDRs that selectors match."),
    "node": ("calico_core.cli.node:node", "Run, stop and inspect this host's node."),
    "policy": ("calico_core.cli.policy:policy", "Policies of tiers: show, add, apply and remove them."),
    "pool": ("calico_core.cli.pool:pool", "Add, remove and show pools of addresses."),
    "profile": ("calico_core.cli.profile:profile", "Profiles: their tags, labels and rules."),
    "status": ("calico_core.cli.status:status", "Is this host's node well? Whom does it peer with?"),
    "tier": ("calico_core.cli.policy:tier", "Tiers: the order in which policies are asked."),
    "version": ("calico_core.cli.version:version", "Print the version."),
}


class LazyGroup(click.Group):
    """Finds commands by name, importing only what is invoked."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted({*COMMANDS, *_third_party_names()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        if cmd_name in _third_party_names():
            return _third_party(cmd_name)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(self.list_commands(ctx))}."
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        rows = [(name, text) for name, (_, text) in sorted(COMMANDS.items())]
        rows += [(name, "(from an integration)") for name in sorted(_third_party_names() - COMMANDS.keys())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--datastore", metavar="URL", help="etcd3://HOST:PORT,…, etcd3s://… or sqlite:///PATH.")
@click.option("--host", metavar="NAME", help="The host meant by commands about 'this' host.")
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), help="Form of the answer.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def calicoctl(ctx: click.Context, datastore: str | None, host: str | None, output: str | None, debug: bool) -> None:
    """Networks and policy for containers."""
    from calico_core.cli.context import CliContext

    ctx.obj = CliContext(datastore=datastore, host=host, output=output, is_debug=debug)
    ctx.call_on_close(ctx.obj.close)


class Terminated(BaseException):
    """By a signal. Like ``KeyboardInterrupt``: what was begun is undone on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> NoReturn:
    """Exit codes: 0 done, 1 failed, 2 bad input, 3 try again, 4 missing, 5 refused by state,
    6 the answer is no (with --exit-code), 129 hung up on, 130 interrupted, 143 terminated."""
    with _ending_as_asked():
        _main()


def _main() -> NoReturn:
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        code = calicoctl.main(args=globals_first(_checked(sys.argv[1:])), prog_name="calicoctl", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Terminated as error:
        with contextlib.suppress(OSError):  # of a terminal that is gone
            click.echo("terminated", err=True)
        sys.exit(128 + error.number)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        from calico_core.cli.failure import exit_code, explain
        from calico_core.cli.output import note

        if "--debug" in sys.argv:
            raise
        for line in explain(error):
            note(line)
        if isinstance(error, OSError):  # what is still to be written is not tried again as the interpreter ends
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(exit_code(error))
    sys.exit(code if isinstance(code, int) else 0)


@contextlib.contextmanager
def _ending_as_asked() -> Iterator[None]:
    """A signal whose default is to end is an exception, so that what was begun is undone. One that is ignored, as
    nohup has it, stays so."""
    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, _frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)  # a second one does not wait
    raise Terminated(number)


def _checked(arguments: list[str]) -> list[str]:
    for number, word in enumerate(arguments, 1):
        if not word.isprintable() and any("\udc80" <= each <= "\udcff" for each in word):
            raise click.UsageError(f"argument {number} is not UTF-8: {os.fsencode(word)!r}")
    return arguments


def globals_first(arguments: list[str]) -> list[str]:
    """Options of the whole tool may stand behind the command too: move them to the front."""
    moved: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in {"-o", "--output", "--datastore"}:
            moved += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word == "--debug" or word.startswith(("-o", "--output=", "--datastore=")):
            moved.append(word)
        else:
            rest.append(word)
    return moved + rest


def _third_party_names() -> set[str]:
    from importlib.metadata import entry_points

    return {entry_point.name for entry_point in entry_points(group="calico.commands")}


def _third_party(name: str) -> click.Command:
    from calico_core.errors import PluginBroken
    from calico_core.plugin_host.loader import load_driver
    from calico_core.plugin_host.namespaces import COMMANDS as NAMESPACE

    command: Any = load_driver(NAMESPACE, name)
    if not isinstance(command, click.Command):
        raise PluginBroken(name, "unknown", f"{command!r} is not a click command")
    return command


if __name__ == "__main__":
    main()

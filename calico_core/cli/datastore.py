"""``calicoctl datastore``."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import click
import msgspec

from calico_core.cli.context import CliContext, open_named_store, pass_context
from calico_core.cli.failure import Missing, Refused
from calico_core.cli.output import answer_one, note
from calico_core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from calico_core.datastore.transfer import Contents
    from calico_core.interfaces.datastore import Datastore

_SHOWN_BAD = 20


@click.group()
def datastore() -> None:
    """The whole store: to a file, from a file, into another store."""


@datastore.command()
@click.option("-f", "--file", "path", default="-", metavar="FILE", help="Where to; - is standard output.")
@pass_context
def export(context: CliContext, path: str) -> None:
    """Write every record as a JSON line, sorted by key.

    Keys under a lease and the agents' own status are left out.
    """
    from calico_core.datastore.transfer import read_contents, to_lines

    contents = read_contents(context.records.store)
    if path == "-":
        sys.stdout.writelines(to_lines(contents))
    else:
        _write_file(Path(path), "".join(to_lines(contents)))
    note(_told("exported", contents))


@datastore.command("import")
@click.option("-f", "--file", "path", default="-", metavar="FILE", help="Where from; - is standard input.")
@click.option("--force", is_flag=True, help="Replace what the store holds.")
@pass_context
def import_(context: CliContext, path: str, force: bool) -> None:
    """Make the store hold exactly what was exported, and check it.

    The store is not ready until that is done. One that holds records already is refused, unless --force.
    """
    from calico_core.datastore.transfer import from_lines, write_contents

    try:
        with click.open_file(path, encoding="utf-8") as file:
            contents = from_lines(file)
    except FileNotFoundError as error:
        raise Missing("file", path) from error
    except UnicodeDecodeError as error:
        raise InvalidRequest("--file", f"{path} is not UTF-8 text: {error}") from error
    context.may_create = True
    store = context.records.store
    if not force:
        _refuse_content(store)
    write_contents(store, contents)
    _tell_bad(contents)
    answer_one(context, _numbers(contents), _told("imported and checked", contents))


@datastore.command()
@click.option("--from", "source_url", required=True, metavar="URL", help="The store in use.")
@click.option("--to", "target_url", metavar="URL", help="The store to use from then on.")
@click.option("--force", is_flag=True, help="Replace what the new store holds.")
@click.option("--abort", is_flag=True, help="After a migration was killed: make the old store ready again.")
@pass_context
def migrate(context: CliContext, source_url: str, target_url: str | None, force: bool, abort: bool) -> None:
    """Copy a store into another one, and check the copy.

    From its beginning the old store is not ready: nothing is attached, and what runs goes on. When it is done the new
    one is ready: start the nodes with it. When it fails, the old one is ready again.

    Example: calicoctl datastore migrate --from sqlite:///var/lib/calico/calico.db --to etcd3://10.0.0.1:2379
    """
    from calico_core.datastore import transfer

    _require_present(source_url)
    if abort == (target_url is not None):
        raise click.UsageError("give either --to URL or --abort")
    with _opened(context, source_url, "--from") as source:
        if target_url is None:
            transfer.open_again(source)
            answer_one(context, {"ready": source_url}, f"{source_url} is ready again")
            return
        with _opened(context, target_url, "--to") as target:
            if source.identity() == target.identity():
                raise Refused(f"{source_url} and {target_url} are the same store")
            if not force:
                _refuse_content(target)
            contents = transfer.migrate(source, target, on_step=note)
    _tell_bad(contents)
    answer_one(context, _numbers(contents), _told("copied and checked", contents))
    note(f"now start every node with CALICO_DATASTORE={target_url}; the old store stays as it is, not ready")


@contextmanager
def _opened(context: CliContext, url: str, option: str) -> Iterator[Datastore]:
    from calico_core.settings_file import load_local_settings

    settings = context.settings if context.datastore_flag else load_local_settings(os.environ)
    settings = msgspec.structs.replace(settings, datastore=url, origins={**settings.origins, "datastore": option})
    store = open_named_store(settings)
    try:
        yield store
    finally:
        store.close()


def _require_present(url: str) -> None:
    """Looking for a SQLite store must not make one."""
    path = unquote(url.partition("?")[0].removeprefix("sqlite://"))
    if url.startswith("sqlite://") and not Path(path).exists():
        raise Missing("datastore", url)


def _refuse_content(store: Datastore) -> None:
    from calico_core.datastore.transfer import TargetNotEmpty, require_empty

    try:
        require_empty(store)
    except TargetNotEmpty as error:
        raise Refused(str(error), "give --force to replace them") from error


def _write_file(path: Path, text: str) -> None:
    """Whole or not at all, and readable by its owner alone: it holds policy. Through links; what is no file, as a
    device, is written to."""
    try:
        path = path.resolve()
    except RuntimeError as error:  # what 3.11 says of links that lead in a circle
        raise Refused(f"{path} cannot be written: {error}") from error
    temporary = path.with_name(f".{path.name}.new")
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        temporary.unlink(missing_ok=True)
        temporary.touch(mode=0o600, exist_ok=False)
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise Refused(f"{path} cannot be written: {error.strerror}") from error


def _tell_bad(contents: Contents) -> None:
    bad = contents.bad_records
    for reason in list(bad.values())[:_SHOWN_BAD]:
        note(f"carried as it is, though it cannot be read: {reason}")
    if len(bad) > _SHOWN_BAD:
        note(f"and {len(bad) - _SHOWN_BAD} more")


def _numbers(contents: Contents) -> dict[str, int]:
    return {"records": len(contents.values), "bytes": contents.size_bytes}


def _told(what: str, contents: Contents) -> str:
    return f"{what} {len(contents.values)} records, {contents.size_bytes} bytes"

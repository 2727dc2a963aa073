"""What every command gets: settings, the datastore (opened when first asked for), the form of the answer."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import click

from calico_core.errors import InvalidSettings, NotReady, PluginMissing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calico_core.datastore.records import TypedRecords
    from calico_core.interfaces.datastore import Datastore
    from calico_core.settings import Settings


OUTPUTS = ("table", "json", "yaml")


class CliContext:
    """Made by the top command, closed when it ends; commands of integrations have it as the root context's ``obj``."""

    def __init__(self, *, datastore: str | None, host: str | None, output: str | None, is_debug: bool) -> None:
        self.datastore_flag = datastore
        self._host = host
        self.output = output or os.environ.get("CALICOCTL_OUTPUT", "") or "table"
        if self.output not in OUTPUTS:
            raise InvalidSettings(
                "output", "environment CALICOCTL_OUTPUT", f"{self.output!r} is not one of {', '.join(OUTPUTS)}"
            )
        self.is_debug = is_debug
        self.may_create = False
        """Set by commands that add something: an embedded store that is not there yet is then made."""
        self._records: TypedRecords | None = None

    @cached_property
    def settings(self) -> Settings:
        """Flag, environment, what the node on this host uses, the embedded default if it exists. Never creates a
        store by looking for one."""
        import msgspec

        from calico_core.settings_file import load_local_settings

        settings = load_local_settings(os.environ)
        if self.datastore_flag:
            origins = {**settings.origins, "datastore": "--datastore"}
            return msgspec.structs.replace(settings, datastore=self.datastore_flag, origins=origins)
        if "datastore" in settings.origins:
            return settings
        saved = self._saved(settings)
        if saved is not None:
            return saved
        path = settings.datastore.removeprefix("sqlite://")
        if not Path(path).exists():
            raise NotReady(
                "no datastore is known: no node runs on this host and there is no "
                f"{path}; name one with --datastore or CALICO_DATASTORE"
            )
        return settings

    def _saved(self, settings: Settings) -> Settings | None:
        from calico_core.node.composition import load_saved_settings

        try:
            return load_saved_settings(settings.run_directory)
        except OSError:
            return None

    @property
    def records(self) -> TypedRecords:
        if self._records is None:
            from calico_core.datastore.records import TypedRecords

            self._refuse_new_store(self.settings.datastore)
            self._records = TypedRecords(open_named_store(self.settings))
        return self._records

    def _refuse_new_store(self, url: str) -> None:
        path = url.removeprefix("sqlite://").partition("?")[0]
        if path != url and not self.may_create and not Path(unquote(path)).exists():
            raise NotReady(f"datastore {url}: there is no such file, and reading creates none")

    @property
    def host(self) -> str:
        from calico_core.node.composition import node_name

        return self._host or node_name(self.settings)

    def answer_one(self, value: Mapping[str, Any], text: str) -> None:
        """One object, or the sentence that says it, in the form that was asked for."""
        from calico_core.cli.output import answer_one

        answer_one(self, value, text)

    def ask_node(self, question: str, *, socket: str = "") -> Any:
        """The answer of the node on this host, or of the one at a ``socket``; None when none answers."""
        from calico_core.cli.running import ask_node

        try:
            return ask_node(question, required=False, socket=socket)
        except NotReady:
            return None

    def close(self) -> None:
        if self._records is not None:
            self._records.store.close()


pass_context = click.make_pass_decorator(CliContext)


def open_named_store(settings: Settings) -> Datastore:
    """Raises ``InvalidSettings`` for a driver that is not installed, by the option or setting that asks for it."""
    from calico_core.node.composition import open_store
    from calico_core.node.driver_names import of_setting

    try:
        return open_store(settings)
    except PluginMissing as error:
        raise of_setting(error, settings) or error from error

"""What a running node does when the datastore's configuration changes: its log follows; anything else needs a start,
which the node gives itself. Source: felix specification 2.1.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from calico_core.errors import CalicoError, InvalidSettings
from calico_core.log import get_logger
from calico_core.model.keys import GlobalConfigKey, HostConfigKey, Key
from calico_core.node.stored_config import StoredConfig
from calico_core.setting_fields import BY_CONFIG, Field, unknown_names
from calico_core.settings import Settings

log = get_logger(__name__)


class LiveSettings:
    """``take`` belongs to one thread; :attr:`differing` may be read by any."""

    def __init__(
        self,
        settings: Settings,
        host: str,
        stored: StoredConfig | None = None,
        on_difference: Callable[[], None] = lambda: None,
        follow: Callable[[Settings], object] = lambda _: None,
    ) -> None:
        """``stored``: what ``settings`` were made with. ``on_difference`` hears when a setting that needs a start has
        become another than the one this process runs with; ``follow`` gets the settings whenever one has changed that
        needs none, and raises ``InvalidSettings`` for what cannot be done."""
        self._settings = self._wanted = settings
        self._file = Settings().log_file  # the last that could be written
        self._follow = follow
        self._host = host
        self._on_difference = on_difference
        self._stored: dict[Key, str] = {}
        self._told: set[str] = set()
        if stored is not None:
            self._stored = {HostConfigKey(host, name): text for name, text in stored.of_host.items()}
            self._stored |= {GlobalConfigKey(name): text for name, text in stored.of_all.items()}
            self._told = set(unknown_names({*stored.of_host, *stored.of_all}))
        self.differing: dict[str, object] = {}
        """Setting → what it is now in the datastore."""

    def begin(self) -> None:
        """With what was merged at the start."""
        self._follow_wanted()

    def take(self, key: Key, value: str | None) -> None:
        """The latest of a key of the datastore's configuration; None: gone. Others are ignored."""
        if not isinstance(key, HostConfigKey | GlobalConfigKey):
            return
        if isinstance(key, HostConfigKey) and key.host != self._host:
            return
        field = BY_CONFIG.get(key.name)
        if field is None:
            self._warn_unknown(key.name)
            return
        if self._stored.get(key) == (value or None):
            return
        if value:
            try:
                field.parse(value)
            except CalicoError as error:
                log.warning("settings.stored_value_ignored", key=key.path, reason=str(error))
                if not field.has_fallback:
                    # a slip of the pen must not start every node of the cluster again; but where the default counts
                    # instead, one must not keep what it was meant to end either, as policy that is switched off
                    return
            self._stored[key] = value
        else:
            self._stored.pop(key, None)
        now, origin = self._value(field)
        if field.is_live:
            self._change(field, now, origin)
        else:
            self._compare(field, now)

    def _warn_unknown(self, name: str) -> None:
        unknown = unknown_names([name])
        if unknown and name not in self._told:
            self._told.add(name)
            log.warning("settings.unknown_name", name=name, where="datastore", did_you_mean=unknown[name] or None)

    def _change(self, field: Field, now: object, origin: str) -> None:
        before = getattr(self._wanted, field.name)
        origins = {**self._wanted.origins, field.name: origin}
        if not origin:
            del origins[field.name]
        self._wanted = msgspec.structs.replace(self._wanted, **{field.name: now}, origins=origins)
        if now != before and field.name not in self._follow_wanted():
            log.warning("settings.followed", setting=field.name, was=before, now=now)

    def _follow_wanted(self) -> set[str]:
        """Names of settings that cannot be followed. What the datastore says stops no node: the log goes on in the
        file it had, and everything else is followed."""
        wanted = self._wanted
        for file in dict.fromkeys((wanted.log_file, self._file, "")):
            try:
                self._follow(msgspec.structs.replace(wanted, log_file=file))
            except InvalidSettings as error:
                log.error("settings.not_followed", reason=str(error))
                if error.name != "log_file":
                    return {error.name}
            else:
                self._file = file
                return set() if file == wanted.log_file else {"log_file"}
        return {"log_file"}

    def _compare(self, field: Field, now: object) -> None:
        loaded = getattr(self._settings, field.name)
        if now == loaded:
            self.differing = {name: value for name, value in self.differing.items() if name != field.name}
            return
        log.warning("settings.needs_start", setting=field.name, was=loaded, now=now)
        self.differing = {**self.differing, field.name: now}
        self._on_difference()

    def _value(self, field: Field) -> tuple[object, str]:
        """And its origin, '' of a default."""
        origin = self._settings.origins.get(field.name, "")
        if origin.startswith(("environment", "file")):
            return getattr(self._settings, field.name), origin
        of_host = [(HostConfigKey(self._host, name), f"datastore host {name}") for name in field.config]
        of_all = [(GlobalConfigKey(name), f"datastore global {name}") for name in field.config]
        for key, origin in (*of_host, *of_all):
            text = self._stored.get(key)
            if text is None:
                continue
            try:
                return field.parse(text), origin
            except CalicoError:  # told when it came
                if field.has_fallback:
                    break
        return getattr(Settings(), field.name), ""

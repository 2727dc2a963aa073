"""What a running node does when the datastore's configuration changes: its log follows; anything else needs a start,
which the node gives itself. Source: felix specification 2.1.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from calico_core.errors import CalicoError
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
        self._settings = self._followed = settings
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
        self._try_to_follow(self._settings)

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
        now = self._value(field)
        if field.is_live:
            self._change(field, now)
        else:
            self._compare(field, now)

    def _warn_unknown(self, name: str) -> None:
        unknown = unknown_names([name])
        if unknown and name not in self._told:
            self._told.add(name)
            log.warning("settings.unknown_name", name=name, where="datastore", did_you_mean=unknown[name] or None)

    def _change(self, field: Field, now: object) -> None:
        before = getattr(self._followed, field.name)
        if now == before:
            return
        self._followed = msgspec.structs.replace(self._followed, **{field.name: now})
        log.warning("settings.followed", setting=field.name, was=before, now=now)
        self._try_to_follow(self._followed)

    def _try_to_follow(self, settings: Settings) -> None:
        """What the datastore says stops no node."""
        try:
            self._follow(settings)
        except CalicoError as error:
            log.error("settings.not_followed", reason=str(error))

    def _compare(self, field: Field, now: object) -> None:
        loaded = getattr(self._settings, field.name)
        if now == loaded:
            self.differing = {name: value for name, value in self.differing.items() if name != field.name}
            return
        log.warning("settings.needs_start", setting=field.name, was=loaded, now=now)
        self.differing = {**self.differing, field.name: now}
        self._on_difference()

    def _value(self, field: Field) -> object:
        if self._settings.origins.get(field.name, "").startswith(("environment", "file")):
            return getattr(self._settings, field.name)
        keys = [HostConfigKey(self._host, name) for name in field.config]
        for key in (*keys, *(GlobalConfigKey(name) for name in field.config)):
            text = self._stored.get(key)
            if text is None:
                continue
            try:
                return field.parse(text)
            except CalicoError:  # told when it came
                if field.has_fallback:
                    break
        return getattr(Settings(), field.name)

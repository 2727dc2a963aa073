"""Settings that a running node follows when the datastore changes: the log level. Source: felix specification 2.1."""

from __future__ import annotations

from calico_core import log as logging
from calico_core.errors import CalicoError
from calico_core.log import get_logger
from calico_core.model.keys import GlobalConfigKey, HostConfigKey, Key
from calico_core.settings import FIELDS, LIVE, Field, Settings

log = get_logger(__name__)

_FIELDS = {field.config: field for field in FIELDS if field.name in LIVE}


class LiveSettings:
    """``take`` belongs to one thread."""

    def __init__(self, settings: Settings, host: str) -> None:
        self._settings = settings
        self._host = host
        self._stored: dict[Key, str] = {}
        self._level = settings.log_level

    def begin(self) -> None:
        """With what was merged at the start."""
        logging.set_level(self._level)

    def take(self, key: Key, value: str | None) -> None:
        """The latest of a key of the datastore's configuration; None: gone. Others are ignored."""
        if isinstance(key, HostConfigKey) and key.host != self._host:
            return
        if not isinstance(key, HostConfigKey | GlobalConfigKey) or key.name not in _FIELDS:
            return
        if value:
            self._stored[key] = value
        else:
            self._stored.pop(key, None)
        level = str(self._value(_FIELDS[key.name]))
        if level != self._level:
            log.warning("log.level", was=self._level, now=level)
            self._level = level
            logging.set_level(level)

    def _value(self, field: Field) -> object:
        if self._settings.origins.get(field.name, "").startswith(("environment", "file")):
            return getattr(self._settings, field.name)
        for key in (HostConfigKey(self._host, field.config), GlobalConfigKey(field.config)):
            text = self._stored.get(key)
            if text is None:
                continue
            try:
                return field.parse(text)
            except CalicoError as error:
                log.warning("settings.stored_value_ignored", key=key.path, reason=str(error))
        return getattr(Settings(), field.name)

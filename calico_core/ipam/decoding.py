"""Records of others, some of which may not decode: those are named in the log and left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calico_core.errors import InvalidRecord
from calico_core.log import get_logger
from calico_core.model import codec

if TYPE_CHECKING:
    from calico_core.interfaces.datastore import Entry
    from calico_core.model.keys import Key

log = get_logger(__name__)


def decode_or_none(key: Key, entry: Entry) -> Any:
    try:
        return codec.decode(key, entry.value)
    except InvalidRecord as error:
        log.warning("ipam.record_malformed", key=error.key, path=error.path, reason=error.reason)
        return None

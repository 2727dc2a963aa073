"""The settings file, as the reference system's agent has it: INI, names in any case, sections for the eye alone.

A file that is not there says nothing. Source: felix specification 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from calico_core.errors import InvalidSettings
from calico_core.settings import Settings, load_settings

DEFAULT_FILE = "/etc/calico/felix.cfg"
VARIABLE = "CALICO_CONFIG_FILE"
"""The environment variable that names another one."""


def load_local_settings(environment: Mapping[str, str]) -> Settings:
    """Environment and file. Raises ``InvalidSettings``."""
    return load_settings(environment, file=read_settings_file(file_of(environment)))


def file_of(environment: Mapping[str, str]) -> str:
    return environment.get(VARIABLE) or DEFAULT_FILE


def read_settings_file(path: str) -> dict[str, str]:
    """Names in lower case; of one that stands twice the last counts. Raises ``InvalidSettings`` naming the line."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidSettings("file", path, f"it cannot be read: {reason}") from error
    return dict(found for number, line in enumerate(text.splitlines(), 1) if (found := _pair(path, number, line)))


def _pair(path: str, number: int, line: str) -> tuple[str, str] | None:
    stripped = line.strip()
    if not stripped or stripped[0] in "#;" or (stripped[0] == "[" and stripped[-1] == "]"):
        return None
    positions = [at for at in (stripped.find("="), stripped.find(":")) if at > 0]
    if not positions:
        raise InvalidSettings("file", f"{path} line {number}", f"{stripped!r} is not NAME = VALUE")
    at = min(positions)
    return stripped[:at].strip().lower(), stripped[at + 1 :].strip()

"""The MTU that workloads get here, kept for who attaches them while the node does not run.

The node finds it in its pools and its host's interfaces. A call in a process of its own sees neither in time, and the
kernel's own MTU would be too large for a tunnel.
"""

from __future__ import annotations

from pathlib import Path

from calico_core.files import replace_file
from calico_core.log import get_logger
from calico_core.settings import Settings

_FILE = "workload-mtu"
_MODE = 0o644

log = get_logger(__name__)


class RememberedMtu:
    """Of one host, in its state directory. One writes, any process reads."""

    def __init__(self, settings: Settings) -> None:
        self._file = Path(settings.state_directory, _FILE)

    def read(self) -> int | None:
        """None: no node has run here, or it leaves the MTU to the kernel."""
        try:
            return int(self._file.read_text())
        except (OSError, ValueError):
            return None

    def note(self, mtu_bytes: int | None) -> None:
        """Cheap where nothing has changed. What cannot be written is told and left as it is."""
        if mtu_bytes == self.read():
            return
        try:
            if mtu_bytes is None:
                self._file.unlink(missing_ok=True)
            else:
                replace_file(self._file, f"{mtu_bytes}\n".encode(), _MODE)
        except OSError as error:
            log.warning("mtu.not_saved", file=str(self._file), reason=str(error))

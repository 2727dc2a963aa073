"""``calico-node``: start the runtime, wait for a signal, stop it."""

from __future__ import annotations

import os
import signal
import sys

from calico_core import __version__, log
from calico_core.errors import CalicoError, InvalidSettings
from calico_core.settings import Settings, load_settings

_USAGE = """Usage: calico-node run | check-config | --version

run            run this host's node in the foreground until SIGTERM
check-config   read the settings, print them with their origin, start nothing
"""
_SWITCH_INTERVAL_S = 0.001
"""A call, which asks for the interpreter after each system call, waits no longer than this behind a calculating
engine; Python's own 5 ms are a whole attach."""
READY_LINE = "Calico node started successfully"
"""Scripts of the reference system wait for this text."""


def main() -> int:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in {"--version", "-v", "version"}:
        _say(__version__)
        return 0
    if command not in {"run", "check-config"} or len(sys.argv) > 2:
        _say(_USAGE.rstrip())
        return 0 if command in {"--help", "-h"} else 2
    try:
        settings = load_settings(os.environ)
    except InvalidSettings as error:
        _complain(str(error))
        return 2
    if command == "check-config":
        for name in Settings.__struct_fields__:
            if name != "origins":
                _say(f"{name:24} {_shown(settings, name):40} {settings.origins.get(name, 'default')}")
        return 0
    return run(settings)


def run(settings: Settings) -> int:
    """Until SIGTERM or SIGINT. 0 after a clean stop, 1 when it could not start, 3 when a part of it died."""
    from calico_core.node.runtime import Runtime

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    log.configure(level=settings.log_level, style=settings.log_format)
    runtime = Runtime(settings, os.environ)
    is_asked = False

    def ask(_signal: int, _frame: object) -> None:
        nonlocal is_asked
        is_asked = True
        runtime.stopping.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    try:
        try:
            runtime.start()
        except CalicoError as error:
            _complain(str(error))
            return 0 if is_asked else 1
        _say(READY_LINE)
        runtime.watch()
    finally:
        runtime.stop()
    return 0 if is_asked else 3


def _shown(settings: Settings, name: str) -> str:
    value = getattr(settings, name)
    return "(set)" if name.endswith("password") and value else str(value)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"calico-node: {text}\n")


if __name__ == "__main__":
    sys.exit(main())

"""``calico-node``: start the runtime, wait for a signal, stop it."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Mapping

from calico_core import __version__, log
from calico_core.errors import CalicoError, InvalidSettings, PluginMissing
from calico_core.node.driver_names import check_drivers, of_setting
from calico_core.setting_fields import FIELDS
from calico_core.settings import Settings, shown_value
from calico_core.settings_file import VARIABLE, load_local_settings

_USAGE = """Usage: calico-node run | check-config [-c FILE]
       calico-node --version

run            run this host's node in the foreground until SIGTERM
check-config   read the settings, print them with their origin, start nothing
-c FILE        a settings file other than /etc/calico/felix.cfg
"""
_SWITCH_INTERVAL_S = 0.001
"""A call, which asks for the interpreter after each system call, waits no longer than this behind a calculating
engine; Python's own 5 ms are a whole attach."""
_STARTING_THRESHOLD = 50_000
"""Objects, after which garbage is looked for before the node is ready."""
READY_LINE = "Calico node started successfully"
"""Scripts of the reference system wait for this text."""


def main() -> int:
    arguments = sys.argv[1:]
    environment = dict(os.environ)
    if len(arguments) > 2 and arguments[1] in {"-c", "--config-file"}:
        environment[VARIABLE] = arguments[2]
        del arguments[1:3]
    command = arguments[0] if arguments else "--help"
    if command in {"--version", "-v", "version"}:
        _say(__version__)
        return 0
    if command not in {"run", "check-config"} or len(arguments) > 1:
        _say(_USAGE.rstrip())
        return 0 if command in {"--help", "-h"} else 2
    try:
        settings = load_local_settings(environment)
    except InvalidSettings as error:
        _complain(str(error))
        return 2
    if command == "check-config":
        _say_settings(settings)
        try:
            check_drivers(settings)
        except InvalidSettings as error:
            _complain(str(error))
            return 2
        return 0
    return run(settings, environment)


def run(settings: Settings, environment: Mapping[str, str]) -> int:
    """Until SIGTERM or SIGINT. 0 after a clean stop, 1 when it could not start, 3 when a part of it died. Wanting to
    start anew, this process becomes the next one."""
    gc.disable()  # importing makes no garbage to speak of, and looking for it is a fifteenth of the time
    from calico_core.listening import take_inherited
    from calico_core.node.log_targets import LogTargets
    from calico_core.node.restart import become_anew, hold_signals, let_signals_in
    from calico_core.node.runtime import Runtime
    from calico_core.node.signal_actions import SignalActions
    from calico_core.node.thread_deaths import ThreadDeaths

    gc.freeze()
    thresholds = gc.get_threshold()
    gc.set_threshold(_STARTING_THRESHOLD)  # a start imports drivers and integrations too, and may wait for long
    gc.enable()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    targets = LogTargets()
    try:
        listeners = take_inherited(os.environ)
        targets.follow(settings)
    except InvalidSettings as error:
        _complain(str(error))
        return 2
    runtime = Runtime(settings, environment, targets, listeners)
    is_asked = False

    def end() -> None:
        nonlocal is_asked
        is_asked = True
        runtime.stopping.set()

    asked = SignalActions(
        {
            signal.SIGTERM: end,
            signal.SIGINT: end,
            signal.SIGHUP: targets.reopen,
            signal.SIGUSR1: runtime.tell_statistics,
        }
    )
    deaths = ThreadDeaths(runtime.stopping.set)
    deaths.watch()
    asked.start()
    let_signals_in()
    code = 3
    try:
        runtime.start()
        gc.set_threshold(*thresholds)
        _say(READY_LINE)
        runtime.watch()
        if not is_asked and not runtime.restart.is_wanted:
            log.get_logger(__name__).critical("node.died")
    except CalicoError as error:
        refused = of_setting(error, settings) if isinstance(error, PluginMissing) else None
        code = 1 if refused is None else 2
        if not runtime.restart.is_wanted:
            _complain(str(refused or error))
    finally:
        runtime.stop()
        if runtime.restart.is_wanted:
            hold_signals()
        asked.stop()
        deaths.stop()
        targets.close()
    if runtime.restart.is_wanted and not is_asked:
        try:
            become_anew(listeners.hand_over())
        except OSError as error:
            _complain(f"{sys.executable} cannot be started anew: {error.strerror}")
            code = 1
    listeners.close()
    return 0 if is_asked else code


def _say_settings(settings: Settings) -> None:
    for field in FIELDS:
        name = field.name
        others = "; ".join(f"{each.origin}: {shown_value(name, each.text)}" for each in settings.shadowed.get(name, ()))
        origin = settings.origins.get(name, "default") + (f" (before {others})" if others else "")
        _say(f"{name:24} {shown_value(name, getattr(settings, name))!s:40} {origin}")
    for note in settings.notes:
        _complain(note)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"calico-node: {text}\n")


if __name__ == "__main__":
    sys.exit(main())

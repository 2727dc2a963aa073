"""One call in a process of its own, because the runtime is down: ``python -I -m calico_core.node.oneshot DIR PROGRAM``.

Started by the shims with the caller's environment and standard input. The same integration code runs; only nobody
programs policy here, so a new interface stays closed until the runtime is back.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys

if __name__ == "__main__":
    gc.disable()  # it ends before there is garbage worth looking for, and an import makes many objects
    from calico_core.node.later import postpone

    postpone(
        "http.client", "inspect", "json", "pprint", "random", "shutil", "ssl", "subprocess", "tempfile", "traceback"
    )
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]  # msgspec goes without, and it takes inspect
    import msgspec  # noqa: F401

    del sys.modules["typing_extensions"]

from calico_core import log as logging_setup
from calico_core.errors import CalicoError, PluginBroken
from calico_core.interfaces.integration import Call, CallReply, Integration, IntegrationContext
from calico_core.log import get_logger
from calico_core.node import composition
from calico_core.node.remembered_mtu import RememberedMtu
from calico_core.plugin_host.loader import LoadedPlugin
from calico_core.settings import Settings
from calico_core.settings_file import load_local_settings
from calico_core.workload.gate import NoAgent
from calico_core.workload.service import WorkloadService

log = get_logger(__name__)


def main() -> int:
    run_directory, program = sys.argv[1], sys.argv[2]
    logging_setup.configure(level="error")
    call = Call(
        program=program,
        environment=dict(os.environ),
        stdin=sys.stdin.buffer.read(),
        namespace_fd=_namespace(os.environ.get("CNI_NETNS", "")),
    )
    reply = answer(call, run_directory)
    sys.stdout.buffer.write(reply.stdout)
    sys.stderr.buffer.write(reply.stderr)
    return reply.status


def answer(call: Call, run_directory: str) -> CallReply:
    """Never raises: what fails before the integration can answer is answered in its form all the same."""
    plugin = None
    try:
        settings = _settings(run_directory)
        shortcuts = composition.load_shortcuts(run_directory)
        plugin = shortcuts.integration(call.program) or _plugin(call.program, settings)
        return run(call, plugin, settings, shortcuts.driver)
    except Exception as error:
        if not isinstance(error, CalicoError):
            log.exception("oneshot.failed")
        integration: type[Integration] = plugin.target if plugin is not None else Integration
        return integration.refuse(call, error)


def run(call: Call, plugin: LoadedPlugin, settings: Settings, load: composition.LoadDriver) -> CallReply:
    """Everything between settings and integration, for one call."""
    with contextlib.ExitStack() as stack:
        host = composition.node_name(settings)
        records = composition.open_records(settings, load)
        stack.callback(records.store.close)
        ipam = composition.open_ipam(records, host, load)
        stack.callback(ipam.close)
        dataplane = composition.open_dataplane(settings, host, load)
        stack.callback(dataplane.close)
        if plugin.target.makes_interfaces(call):
            dataplane.ensure_closed()
        remembered = RememberedMtu(settings)
        workloads = WorkloadService(
            records=records,
            ipam=ipam,
            wiring=dataplane.wiring(),
            gate=NoAgent(),
            host=host,
            default_mtu_bytes=lambda: settings.mtu_bytes or remembered.read(),
        )
        stack.callback(workloads.close)
        context = IntegrationContext(
            workloads=workloads, ipam=ipam, records=records, settings=settings, host=host, is_resident=False
        )
        integration = composition.prepare(plugin, context)
        stack.callback(integration.close)
        return integration.handle(call)


def _plugin(program: str, settings: Settings) -> LoadedPlugin:
    """Raises ``PluginBroken`` when nobody takes its calls."""
    chosen, states = composition.select_integrations(settings)
    for plugin in chosen:
        if program in plugin.target.info.programs:
            return plugin
    reason = f"no integration takes calls of {program!r}; {states or 'none is broken'}"
    raise PluginBroken(program, "none", reason)


def _settings(run_directory: str) -> Settings:
    try:
        return composition.load_saved_settings(run_directory)
    except OSError:
        return load_local_settings(os.environ)


def _namespace(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else None
    except OSError:
        return None


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # all is closed; taking the modules apart would be a quarter of the call

"""One call in a process of its own, because the runtime is down: ``python -I -m calico_core.node.oneshot DIR PROGRAM``.

Started by the shims with the caller's environment and standard input. The same integration code runs; only nobody
programs policy here, so a new interface stays closed until the runtime is back.
"""

from __future__ import annotations

import contextlib
import os
import sys

from calico_core import log as logging_setup
from calico_core.errors import CalicoError, PluginBroken
from calico_core.interfaces.integration import Call, CallReply, IntegrationContext
from calico_core.log import get_logger
from calico_core.node import composition
from calico_core.settings import Settings, load_settings
from calico_core.workload.gate import NoAgent
from calico_core.workload.service import WorkloadService

log = get_logger(__name__)


def main() -> int:
    run_directory, program = sys.argv[1], sys.argv[2]
    logging_setup.configure(level="warning")
    call = Call(
        program=program,
        environment=dict(os.environ),
        stdin=sys.stdin.buffer.read(),
        namespace_fd=_namespace(os.environ.get("CNI_NETNS", "")),
    )
    try:
        settings = composition.load_saved_settings(run_directory)
    except OSError:
        settings = load_settings(os.environ)
    try:
        reply = run(call, settings)
    except CalicoError as error:
        log.error("oneshot.failed", reason=str(error))
        reply = CallReply(status=1, stderr=f"{error}\n".encode())
    sys.stdout.buffer.write(reply.stdout)
    sys.stderr.buffer.write(reply.stderr)
    return reply.status


def run(call: Call, settings: Settings) -> CallReply:
    """Raises ``PluginBroken`` when no integration takes the program."""
    chosen, states = composition.select_integrations(settings)
    for plugin in chosen:
        if call.program not in plugin.target.info.programs:
            continue
        with contextlib.ExitStack() as stack:
            host = composition.node_name(settings)
            records = composition.open_records(settings)
            stack.callback(records.store.close)
            ipam = composition.open_ipam(records, host)
            stack.callback(ipam.close)
            dataplane = composition.open_dataplane(settings, host)
            stack.callback(dataplane.close)
            dataplane.ensure_closed()
            workloads = WorkloadService(
                records=records, ipam=ipam, wiring=dataplane.wiring(), gate=NoAgent(), host=host
            )
            stack.callback(workloads.close)
            context = IntegrationContext(
                workloads=workloads, ipam=ipam, records=records, settings=settings, host=host, is_resident=False
            )
            integration = composition.prepare(plugin, context)
            stack.callback(integration.close)
            return integration.handle(call)
    raise PluginBroken(
        call.program, "none", f"no integration takes calls of {call.program!r}; {states or 'none broken'}"
    )


def _namespace(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else None
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())

"""The IPAM plugin ``calico-ipam``, for other network plugins: every command.

It assigns and releases addresses and touches neither interface nor endpoint. The configuration is the calling
plugin's, so only the parts that concern addresses are looked at. Source: cni specification 5.6.
"""

from __future__ import annotations

from calico_cni.attachment_locks import AttachmentLocks
from calico_cni.commands import collect
from calico_cni.deferred import DeferredDetach, DeferredDetaches
from calico_cni.environment import Invocation
from calico_cni.errors import CheckFailed, InvalidEnvironment
from calico_cni.identity import handle_of, legacy_handles
from calico_cni.migrations import Migrations
from calico_cni.outcome import Outcome
from calico_cni.previous import Previous
from calico_cni.programs import IPAM_PROGRAM
from calico_cni.requested import address_request
from calico_cni.results import Ip, Result, encode_result
from calico_cni.status import check_addresses, check_datastore, check_datastore_soon, require_ready
from calico_cni.versions import check_command
from calico_cni.wire import CommonConfiguration, MinimalConfiguration, parse_configuration
from calico_core.errors import StoreNotReady, Unavailable
from calico_core.interfaces.integration import Call, IntegrationContext
from calico_core.log import get_logger
from calico_core.model.addresses import host_network

log = get_logger(__name__)


class IpamCommands:
    """Any thread."""

    def __init__(
        self,
        context: IntegrationContext,
        locks: AttachmentLocks,
        deferred: DeferredDetaches,
        migrations: Migrations,
    ) -> None:
        self._context = context
        self._locks = locks
        self._deferred = deferred
        self._migrations = migrations

    def close(self) -> None:
        """Nothing is held."""

    def run(self, call: Call, invocation: Invocation) -> Outcome:
        """Raises what the table in ``errors`` maps."""
        if invocation.command == "DEL":
            return self._delete(parse_configuration(call.stdin, MinimalConfiguration), invocation)
        configuration = parse_configuration(call.stdin, CommonConfiguration)
        check_command(configuration.version, invocation.command)
        match invocation.command:
            case "ADD":
                return self._add(call, configuration, invocation)
            case "CHECK":
                return self._check(configuration, invocation)
            case "GC":
                return collect(self._context, self._deferred, call, configuration)
            case "STATUS":
                check_datastore(self._context)
                check_addresses(self._context.records, configuration.ipam)
                return Outcome()
        raise InvalidEnvironment("CNI_COMMAND", f"{invocation.command} is not implemented")

    def test(self, call: Call) -> Outcome:
        """As of the network plugin; addresses need the datastore only."""
        parse_configuration(call.stdin, CommonConfiguration)
        check_datastore_soon(self._context)
        return Outcome()

    def upgrade(self, call: Call) -> Outcome:
        """What ``-upgrade`` asks for: addresses of ``host-local`` become ours. For a process of its own, which sees the
        caller's files and environment."""
        if self._context.is_resident:
            raise InvalidEnvironment("CNI_COMMAND", "UPGRADE is no command: run calico-ipam -upgrade")
        from calico_cni.migration import Migration  # once in the life of a host

        return Outcome(Migration(self._context, self._migrations, call.environment).run().encode())

    def _add(self, call: Call, configuration: CommonConfiguration, invocation: Invocation) -> Outcome:
        handle = handle_of(configuration.name, invocation.container_id, invocation.interface)
        request = address_request(configuration, invocation, handle=handle, host=self._context.host)
        with self._locks.hold(IPAM_PROGRAM, configuration.name, invocation, call.caller_left):
            require_ready(self._context.records)
            with (
                self._deferred.cancelled(IPAM_PROGRAM, configuration.name, invocation),
                self._migrations.admitted(configuration.name, IPAM_PROGRAM),
            ):
                addresses = self._context.ipam.auto_assign(request)
        result = Result(ips=tuple(Ip(address=str(host_network(address))) for address in addresses))
        return Outcome(encode_result(result, configuration.version))

    def _delete(self, configuration: MinimalConfiguration, invocation: Invocation) -> Outcome:
        detach = DeferredDetach.of(IPAM_PROGRAM, configuration.name, invocation)
        with self._locks.hold(IPAM_PROGRAM, configuration.name, invocation):
            try:
                self.detach_deferred(detach)
                if self._migrations.is_under_way:
                    self._deferred.put(detach)  # its address may become ours only now
            except (Unavailable, StoreNotReady) as error:
                log.warning("datastore.away", reason=str(error))
                self._deferred.put(detach)
        return Outcome()

    def detach_deferred(self, detach: DeferredDetach) -> None:
        """What :meth:`run` could not tell the datastore at its time."""
        self._release(detach.network, detach.invocation)

    def _release(self, network: str, invocation: Invocation) -> None:
        require_ready(self._context.records)
        handle = handle_of(network, invocation.container_id, invocation.interface)
        legacy = legacy_handles(invocation.container_id, invocation.interface)
        self._context.ipam.release_by_handle((handle, *legacy))

    def _check(self, configuration: CommonConfiguration, invocation: Invocation) -> Outcome:
        handle = handle_of(configuration.name, invocation.container_id, invocation.interface)
        held = set(self._context.ipam.by_handle(handle))
        missing = set(Previous.of(configuration, invocation.interface).addresses) - held
        if missing or not held:
            what = ", ".join(map(str, sorted(missing))) or "any address"
            raise CheckFailed(f"handle {handle} does not hold {what}")
        return Outcome()

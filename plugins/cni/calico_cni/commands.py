"""The network plugin ``calico``: every command, and what belongs to none of the long ones (``attach``, ``check``,
``garbage``). Source: cni specification 5 and 6.

Everything is validated before the first effect; undoing a failed attach is the service's.
"""

from __future__ import annotations

import contextlib
import functools

import msgspec

from calico_cni.attach import AttachCall
from calico_cni.attachment_locks import AttachmentLocks
from calico_cni.check import CheckCall
from calico_cni.deferred import DeferredDetach, DeferredDetaches
from calico_cni.delegate import Delegate
from calico_cni.environment import NAME, Invocation
from calico_cni.errors import InvalidEnvironment
from calico_cni.garbage import Garbage, valid_attachments
from calico_cni.identity import FIRST_INTERFACE, ORCHESTRATOR, Identity, identify
from calico_cni.interface_mode import may_share_interface, shares_interface
from calico_cni.kubernetes import PodName, Pods
from calico_cni.legacy import LegacyEndpoints
from calico_cni.migrations import Migrations
from calico_cni.namespace import check_container_namespace
from calico_cni.outcome import Outcome
from calico_cni.pod_cidr import wants_pod_cidr
from calico_cni.programs import IPAM_PROGRAM, NETWORK_PROGRAM
from calico_cni.readiness import wait_for_gates
from calico_cni.status import check_addresses, check_agent, check_datastore, check_datastore_soon, require_ready
from calico_cni.supported import check_add, check_supported, is_behind, is_foreign
from calico_cni.versions import check_command
from calico_cni.wire import (
    CommonConfiguration,
    MinimalConfiguration,
    NetworkConfiguration,
    ipam_type,
    is_of_kubernetes,
    is_policy_only,
    parse_configuration,
    unknown_keys,
)
from calico_core.errors import InvalidRecord, NotReady, StoreNotReady, Unavailable
from calico_core.interfaces.integration import Call, IntegrationContext
from calico_core.log import get_logger
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.workloads import Detach
from calico_core.stopwatch import lap

log = get_logger(__name__)


class NetworkCommands:
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
        self._pods = Pods()
        self._legacy = LegacyEndpoints(context)

    def close(self) -> None:
        self._pods.close()

    def run(self, call: Call, invocation: Invocation) -> Outcome:
        """Raises what the table in ``errors`` maps."""
        match invocation.command:
            case "ADD":
                return self._add(call, invocation)
            case "DEL":
                return self._delete(call, invocation)
            case "CHECK":
                return self._check(call, invocation)
            case "GC":
                return self._collect(call)
            case "STATUS":
                return self._status(call)
        raise InvalidEnvironment("CNI_COMMAND", f"{invocation.command} is not implemented")

    def test(self, call: Call) -> Outcome:
        """Whether an ADD with this configuration would find what it needs, with two seconds for each question: the
        datastore, ready for use, and the Kubernetes API where it is to be asked. Source: cni specification 1, ``-t``.
        """
        configuration = parse_configuration(call.stdin, NetworkConfiguration)
        check_supported(configuration, host=self._context.host)
        check_datastore_soon(self._context)
        self._pods.check(configuration, needs_node=is_foreign(configuration) and wants_pod_cidr(call.stdin))
        return Outcome()

    def upgrade(self, call: Call) -> Outcome:
        """Addresses are the other program's."""
        raise InvalidEnvironment("CNI_COMMAND", f"{call.program} has no addresses to move: run {IPAM_PROGRAM} -upgrade")

    def _add(self, call: Call, invocation: Invocation) -> Outcome:
        configuration = parse_configuration(call.stdin, NetworkConfiguration)
        strangers = unknown_keys(call.stdin)
        if strangers:
            log.info("configuration.unknown_keys", network=configuration.name, keys=", ".join(strangers))
        check_add(configuration)
        check_supported(configuration, host=self._context.host)
        namespace_fd = check_container_namespace(call.namespace_fd, invocation)
        if configuration.fallback == "never" and not self._context.is_resident:
            raise NotReady("the node does not run, and the configuration forbids to do without (fallback: never)")
        pod = _pod_of(call, invocation)
        with self._locks.hold(NETWORK_PROGRAM, configuration.name, invocation, call.caller_left):
            if configuration.readiness_gates:
                wait_for_gates(configuration.readiness_gates)
                lap("readiness_gates")
            with self._deferred.cancelled(NETWORK_PROGRAM, configuration.name, invocation):
                return self._attach(call, invocation, configuration, pod, namespace_fd)

    def _attach(
        self,
        call: Call,
        invocation: Invocation,
        configuration: NetworkConfiguration,
        pod: PodName | None,
        namespace_fd: int,
    ) -> Outcome:
        identity = self._identify(configuration, invocation, pod)
        if is_foreign(configuration) and wants_pod_cidr(call.stdin):
            stdin = self._pods.with_pod_cidrs(configuration, call.stdin, self._context.host)
            call = msgspec.structs.replace(call, stdin=stdin)
            lap("kubernetes")
        policy = None
        if pod is not None:
            policy, configuration = self._pods.policy_and_wishes(configuration, invocation, pod)
            lap("kubernetes")
        turn = functools.partial(self._turn, call, invocation, pod)
        attach = AttachCall(self._context, call, invocation, configuration, identity, namespace_fd, policy, turn=turn)
        if configuration.has_prev_result:
            return attach.run()
        with self._migrations.admitted(configuration.name, configuration.ipam.type):
            return attach.run()

    def _turn(self, call: Call, invocation: Invocation, pod: PodName | None) -> contextlib.AbstractContextManager[None]:
        """In which record and interface are made."""
        if pod is None:
            return contextlib.nullcontext()
        return self._locks.hold_pod(NETWORK_PROGRAM, pod, invocation, call.caller_left)

    def _delete(self, call: Call, invocation: Invocation) -> Outcome:
        """Interface, record and addresses. Whatever fails, the parts that do not need it are done."""
        configuration = parse_configuration(call.stdin, MinimalConfiguration)
        pod = _pod_of(call, invocation)
        with self._locks.hold(NETWORK_PROGRAM, configuration.name, invocation, pod=pod):
            self._detach_all(call, invocation, configuration.name)
        return Outcome()

    def _detach_all(self, call: Call, invocation: Invocation, network: str) -> None:
        ipam = ipam_type(call.stdin)
        detach = DeferredDetach.of(
            NETWORK_PROGRAM,
            network,
            invocation,
            is_of_kubernetes=is_of_kubernetes(call.stdin),
            may_share_interface=may_share_interface(call.stdin),
            is_policy_only=is_policy_only(call.stdin),
        )
        # with another name no ADD can have succeeded
        has_delegated = ipam != IPAM_PROGRAM and NAME.fullmatch(ipam) is not None and not detach.is_policy_only
        try:
            has_delegated = has_delegated and not self._is_borrowed(detach)
            self.detach_deferred(detach, call.namespace_fd)
            if self._migrations.is_under_way:
                self._deferred.put(detach)  # its address may become ours only now
        except (Unavailable, StoreNotReady) as error:
            log.warning("datastore.away", reason=str(error))
            self._deferred.put(detach)
        finally:
            if has_delegated:
                Delegate(ipam, call).delete()
                lap("delegate")

    def _is_borrowed(self, detach: DeferredDetach) -> bool:
        """Whether the plugin that made the interface gives its addresses back, and none was asked for any by us. While
        nobody can say, a plugin is rather told once too often."""
        try:
            record = self._record(self._identity(detach.network, detach.invocation, detach.pod))
        except Unavailable:
            return False
        return record is not None and record.is_borrowed

    def detach_deferred(self, detach: DeferredDetach, namespace_fd: int | None = None) -> None:
        """What :meth:`run` could not tell the datastore at its time; the namespace is gone by then."""
        invocation, network, pod = detach.invocation, detach.network, detach.pod
        own = self._identity(network, invocation, pod)
        shared = self._identity(network, invocation, pod, is_shared=True)
        # its own before a shared one: it goes though the datastore is away, and nobody can say whether there is another
        tried = [shared if detach.may_share_interface and shared.key == own.key else own]
        may_be_renamed = PodName.of(invocation.arguments) is not None
        is_found = self._detach(detach, tried[0], namespace_fd, keeps_handles=may_be_renamed)
        # the mode may have been another one when the interface was made: the record says which it was
        if shared.key != own.key and (detach.may_share_interface or self._has_joined(shared, network, invocation)):
            tried.append(shared)
            is_found = self._detach(detach, shared, namespace_fd, keeps_handles=may_be_renamed) or is_found
        if not is_found and may_be_renamed:
            is_found = self._detach_renamed(detach, namespace_fd)
            for identity in () if is_found else tried:
                self._detach(detach, identity, namespace_fd)  # what it left is nobody else's
        if not is_found and invocation.interface == FIRST_INTERFACE:
            self._legacy.detach(own, invocation.container_id, namespace_fd)

    def _detach_renamed(self, detach: DeferredDetach, namespace_fd: int | None) -> bool:
        """The list may have come to name endpoints after pods since the ADD, or ceased to. What goes by the other name
        is this container's only if its record says so."""
        invocation = detach.invocation
        pod = PodName.of(invocation.arguments)
        if pod is None:
            return False
        named = None if detach.is_of_kubernetes else pod
        identities = [
            self._identity(detach.network, invocation, named, is_shared=is_shared) for is_shared in (False, True)
        ]
        is_found = False
        for identity in {each.key: each for each in reversed(identities)}.values():
            record = self._record(identity)
            if record is not None and record.container_id == invocation.container_id:
                self._detach(detach, identity, namespace_fd)
                is_found = True  # though it may be that only others use it by now: it says whose the addresses are
        return is_found

    def _has_joined(self, shared: Identity, network: str, invocation: Invocation) -> bool:
        record = self._record(shared)
        attachments = record.attachments if record is not None else ()
        return any((each.network, each.ifname) == (network, invocation.interface) for each in attachments)

    def _record(self, identity: Identity) -> WorkloadEndpoint | None:
        """None also for one that cannot be read: it tells nothing, and must not keep anything from going."""
        try:
            found = self._context.records.get(identity.key)
        except InvalidRecord:
            return None
        return found.record if found is not None else None

    def _detach(
        self, detach: DeferredDetach, identity: Identity, namespace_fd: int | None, *, keeps_handles: bool = False
    ) -> bool:
        invocation = detach.invocation
        return self._context.workloads.detach(
            Detach(
                key=identity.key,
                interface=identity.interface,
                # a plugin before us may have had them of calico-ipam under the same name
                handles=() if detach.is_policy_only else (identity.handle, *identity.legacy_handles),
                keeps_handles=keeps_handles,
                container_id=invocation.container_id,
                # a runtime deletes after a refused ADD too: that must not take the interface which was in the way
                network=detach.network,
                container_interface=invocation.interface,
                is_shared=identity.is_shared,
                needs_ready=True,
                # a late call must not take the interface of the pod's next sandbox, which has the same name
                is_replaceable=identity.key.orchestrator != ORCHESTRATOR,
                namespace_fd=namespace_fd,
            )
        )

    def _check(self, call: Call, invocation: Invocation) -> Outcome:
        configuration = parse_configuration(call.stdin, NetworkConfiguration)
        check_command(configuration.version, "CHECK")
        identity = self._identify(configuration, invocation, _pod_of(call, invocation))
        CheckCall(self._context, call, invocation, configuration, identity).run()
        return Outcome()

    def _collect(self, call: Call) -> Outcome:
        configuration = parse_configuration(call.stdin, NetworkConfiguration)
        check_command(configuration.version, "GC")
        return collect(self._context, self._deferred, call, configuration)

    def _status(self, call: Call) -> Outcome:
        configuration = parse_configuration(call.stdin, NetworkConfiguration)
        check_command(configuration.version, "STATUS")
        check_supported(configuration, host=self._context.host)
        self._pods.check(configuration, needs_node=is_foreign(configuration) and wants_pod_cidr(call.stdin))
        check_datastore(self._context)
        if is_foreign(configuration):
            Delegate(configuration.ipam.type, call).forward("STATUS")
        elif not is_behind(configuration):
            check_addresses(self._context.records, configuration.ipam)
        check_agent(self._context)
        return Outcome()

    def _identify(self, configuration: NetworkConfiguration, invocation: Invocation, pod: PodName | None) -> Identity:
        return self._identity(configuration.name, invocation, pod, is_shared=shares_interface(configuration))

    def _identity(
        self, network: str, invocation: Invocation, pod: PodName | None, *, is_shared: bool = False
    ) -> Identity:
        return identify(
            host=self._context.host,
            network=network,
            container_id=invocation.container_id,
            container_interface=invocation.interface,
            prefix=self._context.settings.interface_prefixes[0],
            pod=pod,
            is_shared=is_shared,
        )


def _pod_of(call: Call, invocation: Invocation) -> PodName | None:
    """The pod that the endpoint is named after."""
    return PodName.of(invocation.arguments) if is_of_kubernetes(call.stdin) else None


def collect(
    context: IntegrationContext, deferred: DeferredDetaches, call: Call, configuration: CommonConfiguration
) -> Outcome:
    """GC of either program, whose the configuration is: with that of ``calico`` interfaces and records are ours too."""
    valid = valid_attachments(configuration)
    require_ready(context.records)
    garbage = Garbage(context, configuration.name, valid)
    deferred.drop(configuration.name, valid)
    if isinstance(configuration, NetworkConfiguration):
        garbage.collect_endpoints()
    garbage.collect_handles()
    if isinstance(configuration, NetworkConfiguration):
        garbage.collect_interfaces()
        if is_foreign(configuration):
            garbage.forward(lambda: Delegate(configuration.ipam.type, call).forward("GC"))
    garbage.raise_failures()
    return Outcome()

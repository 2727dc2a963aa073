"""Random sequences of ADD, DEL, CHECK and GC over few containers, interfaces and networks, with nodes that die at any
step, replies that are lost and a datastore that fails, against a model of what the runtime was told. Source: cni
specification 9, property test.

The real integration, workload service and address management on a memory store; interfaces are kept in memory. What
the runtime was not told of is complete or absent, and absent once it is deleted.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from calico_cni import check as checking
from calico_cni import garbage
from calico_cni.integration import CniIntegration
from calico_core.dataplane.memory import MemoryDataplane
from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.errors import KernelRefused
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.interfaces.integration import Call, CallReply, IntegrationContext
from calico_core.ipam.allocator import BlockIpam
from calico_core.model.keys import HOSTS, ReadyKey
from calico_core.settings import Settings
from calico_core.workload.gate import NoAgent
from calico_core.workload.service import WorkloadService
from tests.doubles.cni import HOST, a_network
from tests.doubles.ipam_store import add_pool, check_laws

Attachment = tuple[str, str, str]
"""Network, container, interface."""

attachments = st.sampled_from(
    [
        (network, container, interface)
        for network, interfaces in (("a", ("eth0", "eth1")), ("b", ("net1",)))
        for container in ("c1", "c2")
        for interface in interfaces
    ]
)


class Death(BaseException):
    """Of the node's process: no line of it runs any more."""


class Life:
    """A process's. ``remaining``: calls to what outlives it until it dies, None: none."""

    def __init__(self) -> None:
        self.remaining: int | None = None
        self.is_over = False

    def end_after(self, calls: int) -> None:
        self.remaining = calls

    def spend(self) -> None:
        if self.remaining is not None:
            self.remaining -= 1
            self.is_over = self.is_over or self.remaining < 0
        if self.is_over:
            raise Death


class Mortal:
    """The datastore or the kernel as a process uses them that may die before and after each call."""

    def __init__(self, whole: Any, life: Life) -> None:
        self._whole, self._life = whole, life

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._whole, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self._life.spend()
            result = found(*arguments, **options)
            self._life.spend()
            return result

        return call


class Node:
    """A process. What it stands on outlives it."""

    def __init__(self, store: MemoryDatastore, wiring: Any, state: str) -> None:
        self.life = Life()
        records = TypedRecords(cast("MemoryDatastore", Mortal(store, self.life)))
        ipam = BlockIpam(records, HOST)
        self._service = WorkloadService(
            records=records, ipam=ipam, wiring=cast("Any", Mortal(wiring, self.life)), gate=NoAgent(), host=HOST
        )
        self.integration = CniIntegration()
        self.integration.prepare(
            IntegrationContext(
                workloads=self._service,
                ipam=ipam,
                records=records,
                settings=Settings(state_directory=state),
                host=HOST,
            )
        )

    def close(self) -> None:
        self.integration.close()
        self._service.close()


class Runtime(RuleBasedStateMachine):
    """``standing``: what it was told is there, with the result. ``unsure``: what it was told nothing of, or of which a
    call failed."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(garbage, "YOUNG_S", -1.0)
        self.patches.setattr(checking, "PATIENCE_S", 0.0)
        self.folder = tempfile.TemporaryDirectory(prefix="cni-model-")
        self.store = MemoryDatastore()
        self.records = TypedRecords(self.store)
        self.records.put(ReadyKey(), "true")
        add_pool(self.store, "10.65.0.0/26")
        self.wiring = MemoryDataplane(DataplaneOptions(host=HOST)).wiring()
        self.namespace = os.open("/proc/self/ns/uts", os.O_RDONLY)
        self.node = Node(self.store, self.wiring, self.folder.name)
        self.standing: dict[Attachment, dict[str, Any]] = {}
        self.unsure: set[Attachment] = set()
        self.is_collected = False

    @initialize(is_collected=st.booleans())
    def begin(self, is_collected: bool) -> None:
        """At the end GC removes what the runtime is unsure of, its containers being gone; or it deletes each."""
        self.is_collected = is_collected

    # --- what a runtime does --------------------------------------------------------------------

    @rule(attachment=attachments)
    def add(self, attachment: Attachment) -> None:
        may_fail = self.may_fail
        reply = self.call("ADD", attachment)
        if reply is None or reply.status:
            assert reply is None or may_fail, reply.stdout
            self.is_unsure(attachment)
            return
        result = json.loads(reply.stdout)
        before = self.standing.setdefault(attachment, result)
        assert result["ips"] == before["ips"], "an ADD that is repeated gives what is there"
        self.unsure.discard(attachment)

    @rule(attachment=attachments)
    def add_unheard(self, attachment: Attachment) -> None:
        self.call("ADD", attachment)
        self.is_unsure(attachment)

    @rule(attachment=attachments)
    def add_that_the_kernel_refuses(self, attachment: Attachment) -> None:
        if self.may_fail or self.node.life.remaining is not None:
            return
        was_there = attachment in self.recorded()
        self.wiring.fail_next(KernelRefused("add link", errno.ENOSPC))
        reply = self.call("ADD", attachment)
        assert reply is not None
        assert reply.status == 1
        assert (attachment in self.recorded()) == was_there, "an ADD that fails takes back what it did, and no more"
        self.is_unsure(attachment)

    @rule(attachment=attachments)
    def delete(self, attachment: Attachment) -> None:
        reply = self.call("DEL", attachment)
        self.standing.pop(attachment, None)
        if reply is None:
            self.unsure.add(attachment)
            return
        assert reply == CallReply(), "whatever fails, a DEL succeeds"
        self.unsure.discard(attachment)

    @rule(attachment=attachments)
    def delete_unheard(self, attachment: Attachment) -> None:
        self.call("DEL", attachment)
        self.standing.pop(attachment, None)
        self.unsure.add(attachment)

    @rule(attachment=attachments)
    def check(self, attachment: Attachment) -> None:
        may_fail = self.may_fail
        reply = self.call("CHECK", attachment, prevResult=self.standing.get(attachment, {"cniVersion": "1.1.0"}))
        if reply is not None and attachment in self.standing and not may_fail:
            assert reply == CallReply()
        if reply is not None and attachment not in self.standing and attachment not in self.unsure:
            assert reply.status == 1

    @rule(network=st.sampled_from("ab"), is_known=st.booleans())
    def collect(self, network: str, is_known: bool) -> None:
        """``is_known``: the runtime's list also names what it is unsure of."""
        valid = {each for each in (*self.standing, *(self.unsure if is_known else ())) if each[0] == network}
        listed = [{"containerID": container, "ifname": interface} for _, container, interface in sorted(valid)]
        reply = self.call("GC", (network, "", ""), **{"cni.dev/valid-attachments": listed})
        if reply is not None and reply.status == 0:
            assert {each for each in self.recorded() if each[0] == network} <= valid

    # --- what goes wrong ------------------------------------------------------------------------

    @rule(calls=st.integers(0, 25))
    def the_node_will_die(self, calls: int) -> None:
        self.node.life.end_after(calls)

    @rule(nth=st.integers(1, 4), is_applied=st.booleans())
    def a_write_will_fail(self, nth: int, is_applied: bool) -> None:
        """Once, as a member of a cluster that goes; the answer may be what is lost."""
        (self.store.faults.apply_unanswered if is_applied else self.store.faults.refuse)(nth)

    @rule()
    def the_store_goes_away(self) -> None:
        self.store.faults.down = True

    @rule()
    def the_store_comes_back(self) -> None:
        self.store.faults.down = False

    @rule()
    def replay(self) -> None:
        """As the node does each second."""
        try:
            self.node.integration.replay()
        except Death:
            self.restart()

    # --- what must hold -------------------------------------------------------------------------

    @invariant()
    def what_stands_is_whole(self) -> None:
        is_down, self.store.faults.down = self.store.faults.down, False
        recorded = self.recorded()
        for attachment, result in self.standing.items():
            assert attachment in recorded
            name, addresses = recorded[attachment]
            assert addresses == {ip["address"] for ip in result["ips"]}
            assert self.wiring.exists(name)
        check_laws(self.store)
        self.store.faults.down = is_down

    def teardown(self) -> None:
        try:
            self.reconcile()
        finally:
            self.node.close()
            os.close(self.namespace)
            self.folder.cleanup()
            self.patches.undo()

    def reconcile(self) -> None:
        """The node runs, the store answers, and the runtime ends what it is unsure of."""
        self.store.faults.down = False
        self.store.faults._refused.clear()
        self.store.faults._unanswered.clear()
        self.restart()
        self.node.integration.replay()
        assert set(self.standing) <= set(self.recorded()) <= {*self.standing, *self.unsure}, "deleted is deleted"
        if self.is_collected:
            names = {name for attachment, (name, _) in self.recorded().items() if attachment in self.standing}
            for interface in self.wiring._made.keys() - names:
                self.wiring.abandon(interface)
            for network in ("a", "b"):
                self.collect(network, is_known=False)
        else:
            for attachment in sorted(self.unsure):
                assert self.call("DEL", attachment) == CallReply()
        recorded = self.recorded()
        assert set(recorded) == set(self.standing)
        self.what_stands_is_whole()
        assert set(self.wiring._made) == {name for name, _ in recorded.values()}
        holders = check_laws(self.store).holders()
        held = {f"{address}/32" for address, handle in holders.items() if handle is not None}
        assert held == {address for _, addresses in recorded.values() for address in addresses}

    # --- parts ----------------------------------------------------------------------------------

    def call(self, command: str, attachment: Attachment, **changes: Any) -> CallReply | None:
        """None: the node died over it. The next one runs at once."""
        network, container, interface = attachment
        environment = {"CNI_COMMAND": command}
        if command != "GC":
            environment |= {"CNI_CONTAINERID": container, "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": interface}
        stdin = json.dumps(a_network(cniVersion="1.1.0", name=network, **changes)).encode()
        reply = self.node.integration.handle(
            Call(program="calico", environment=environment, stdin=stdin, namespace_fd=self.namespace)
        )
        if not self.node.life.is_over:
            return reply
        self.restart()
        return None

    @property
    def may_fail(self) -> bool:
        faults = self.store.faults
        return bool(faults.down or faults._refused or faults._unanswered)

    def restart(self) -> None:
        self.node.close()
        self.node = Node(self.store, self.wiring, self.folder.name)

    def is_unsure(self, attachment: Attachment) -> None:
        if attachment not in self.standing:
            self.unsure.add(attachment)

    def recorded(self) -> dict[Attachment, tuple[str, set[str]]]:
        """Its interface and addresses."""
        found = {}
        for each in self.records.list(f"{HOSTS}{HOST}/workload/"):
            record = each.record
            attachment = (str(record.network), str(record.container_id), str(record.ifname))
            found[attachment] = (record.name, {str(net) for net in record.nets})
        return found


TestRuntime = Runtime.TestCase
TestRuntime.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)

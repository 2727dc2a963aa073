"""The handle of an attachment is found again from its endpoint record alone."""

from __future__ import annotations

import pytest

from calico_cni.identity import identify
from calico_cni.integration import CniIntegration
from calico_core.model.endpoints import WorkloadEndpoint


@pytest.mark.parametrize("interface", ["eth0", "net1"])
@pytest.mark.parametrize("pod", [None, ("default", "web")])
def test_the_handle_is_what_the_attach_used(interface: str, pod: tuple[str, str] | None) -> None:
    identity = identify(host="a", network="net", container_id="c1", container_interface=interface, pod=pod)
    record = WorkloadEndpoint(
        state="active", name=identity.interface, network="net", container_id="c1", ifname=interface
    )
    assert CniIntegration.handle_of(identity.key, record) == identity.handle
    assert identity.key.orchestrator in CniIntegration.info.filed_under


def test_a_record_of_other_software_does_not_tell() -> None:
    identity = identify(host="a", network="net", container_id="c1", container_interface="eth0")
    assert CniIntegration.handle_of(identity.key, WorkloadEndpoint(state="active", name="cali1")) is None

"""What the node asks of all integrations at once."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from calico_cni.integration import CniIntegration
from calico_core.interfaces.integration import Gauge, IntegrationContext
from calico_core.node.hosted import HostedIntegrations
from calico_core.node.metric import render
from calico_core.node.metrics import collect
from tests.doubles.cni import CniSetup


@pytest.fixture
def context(tmp_path: Path) -> IntegrationContext:
    made = CniSetup(-1, state=tmp_path).context
    settings = msgspec.structs.replace(made.settings, integrations=("cni", "mesos"))
    return msgspec.structs.replace(made, settings=settings)


def test_what_integrations_tell_is_in_the_metrics_and_a_broken_one_keeps_out_only_itself(
    context: IntegrationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosted = HostedIntegrations(threading.Event())
    hosted.start(context)
    try:
        assert hosted.gauges() == {"cni": (), "mesos": ()}
        monkeypatch.setattr(CniIntegration, "gauges", lambda _: [Gauge(name="age_seconds", text="Age.", value=7.5)])
        text = render(collect("rack-a", 5.0, None, None, integrations=hosted.gauges())).decode()
        assert "# HELP calico_cni_age_seconds Age.\n# TYPE calico_cni_age_seconds gauge\n" in text
        assert "calico_cni_age_seconds 7.5\n" in text
        monkeypatch.setattr(CniIntegration, "gauges", lambda _: 1 / 0)
        assert hosted.gauges() == {"mesos": ()}
    finally:
        hosted.close()

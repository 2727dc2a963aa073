"""What the node asks of all integrations at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest

from calico_cni.integration import CniIntegration
from calico_core.interfaces.integration import Gauge, Integration, IntegrationContext
from calico_core.node.hosted import HostedIntegrations
from calico_core.node.metric import Metric, render
from calico_core.node.metrics import collect
from calico_mesos.integration import MesosIntegration
from tests.doubles.cni import CniSetup


@pytest.fixture
def context(tmp_path: Path) -> IntegrationContext:
    made = CniSetup(-1, state=tmp_path).context
    settings = msgspec.structs.replace(made.settings, integrations=("cni", "mesos"))
    return msgspec.structs.replace(made, settings=settings)


@pytest.fixture
def hosted(context: IntegrationContext) -> Iterator[HostedIntegrations]:
    hosted = HostedIntegrations(threading.Event())
    hosted.start(context)
    yield hosted
    hosted.close()


def told(hosted: HostedIntegrations) -> list[str]:
    """Their lines of the page, the rest of which is there too."""
    page = render(collect("rack-a", 5.0, None, None, integrations=hosted.metrics())).decode()
    assert 'felix_host{host="rack-a"} 1\n' in page
    return [line for line in page.splitlines() if "calico_" in line]


def test_what_integrations_tell_is_in_the_metrics(hosted: HostedIntegrations, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(hosted) == []
    monkeypatch.setattr(CniIntegration, "gauges", lambda _: [Gauge(name="age_seconds", text="Age.", value=7.5)])
    assert told(hosted) == [
        "# HELP calico_cni_age_seconds Age.",
        "# TYPE calico_cni_age_seconds gauge",
        "calico_cni_age_seconds 7.5",
    ]


def test_names_become_those_of_metrics_and_texts_stay_on_their_line(
    hosted: HostedIntegrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge = Gauge(name="pods/größe-1", text="Of C:\\pods\nfelix_host 0", value=2)
    monkeypatch.setattr(CniIntegration, "gauges", lambda _: [gauge])
    assert told(hosted) == [
        "# HELP calico_cni_pods_gr__e_1 Of C:\\\\pods\\nfelix_host 0",
        "# TYPE calico_cni_pods_gr__e_1 gauge",
        "calico_cni_pods_gr__e_1 2",
    ]


@pytest.mark.parametrize(
    "tell",
    [
        lambda _: 1 / 0,
        lambda _: None,
        lambda _: [("age_seconds", 7.5)],
        lambda _: [Gauge(name="age_seconds", text="Age.", value=None)],  # type: ignore[arg-type]
    ],
    ids=["raises", "nothing", "no-gauge", "no-value"],
)
def test_one_that_tells_nonsense_keeps_out_only_itself(
    hosted: HostedIntegrations,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tell: Callable[[Integration], Any],
) -> None:
    monkeypatch.setattr(CniIntegration, "gauges", tell)
    monkeypatch.setattr(MesosIntegration, "gauges", lambda _: [Gauge(name="tasks", text="Tasks.", value=3)])
    assert told(hosted)[-1] == "calico_mesos_tasks 3"
    assert not any("calico_cni" in line for line in told(hosted))
    assert "integration.gauges_unknown" in caplog.messages


def test_figures_of_other_types_are_figures(hosted: HostedIntegrations, monkeypatch: pytest.MonkeyPatch) -> None:
    gauge = Gauge(name="share", text=None, value=Fraction(1, 4))  # type: ignore[arg-type]
    monkeypatch.setattr(CniIntegration, "gauges", lambda _: [gauge])
    assert told(hosted)[-1] == "calico_cni_share 0.25"


def test_of_figures_that_come_to_one_name_the_first_stands(
    hosted: HostedIntegrations, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prometheus refuses a page that has a name twice, and with it all figures of the node."""
    first, second, third = (Gauge(name=name, text=name, value=1) for name in ("a-b", "a_b", "tasks"))
    monkeypatch.setattr(CniIntegration, "gauges", lambda _: [first, second])
    monkeypatch.setattr(MesosIntegration, "gauges", lambda _: [third, third])
    lines = told(hosted)
    assert [line for line in lines if not line.startswith("#")] == ["calico_cni_a_b 1", "calico_mesos_tasks 1"]
    assert next(line for line in lines if line.startswith("# HELP")).endswith("a-b"), "the first"
    assert caplog.messages.count("metrics.name_taken") == 2


def test_a_name_of_the_nodes_own_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    theirs = [Metric("felix_host", "gauge", "Not the node's.", (("", {}, 7.0),))]
    page = render(collect("rack-a", 5.0, None, None, integrations=theirs)).decode()
    assert (page.count("# TYPE felix_host "), "Not the node's" in page) == (1, False)
    assert "metrics.name_taken" in caplog.messages

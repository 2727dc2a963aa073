"""One metric, and the text that Prometheus reads (text format, version 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from calico_core.stopwatch import Timing

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Kind = Literal["counter", "gauge", "summary"]
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})
_ESCAPES = _HELP_ESCAPES | str.maketrans({'"': r"\""})


class Metric(NamedTuple):
    """``samples``: (suffix of the name, labels, value)."""

    name: str
    kind: Kind
    help: str
    samples: tuple[tuple[str, Mapping[str, str], float], ...]


def render(metrics: Iterable[Metric]) -> bytes:
    lines: list[str] = []
    for metric in metrics:
        text = metric.help.translate(_HELP_ESCAPES)
        lines += [f"# HELP {metric.name} {text}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [f"{metric.name}{suffix}{_labels(labels)} {value:.17g}" for suffix, labels, value in metric.samples]
    return ("\n".join(lines) + "\n").encode(errors="replace")


def gauge(name: str, text: str, value: float, **labels: str) -> Metric:
    return Metric(name, "gauge", text, (("", labels, value),))


def counter(name: str, text: str, value: float) -> Metric:
    return Metric(name, "counter", text, (("", {}, value),))


def by_label(name: str, kind: Kind, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """One sample for each value of a label."""
    return Metric(name, kind, text, tuple(("", {label: each}, value) for each, value in sorted(values.items())))


def summary(name: str, text: str, timing: Timing) -> Metric:
    return summed(name, text, timing.sum_s, timing.count)


def summed(name: str, text: str, total: float, count: float) -> Metric:
    """A summary without quantiles."""
    return Metric(name, "summary", text, (("_sum", {}, total), ("_count", {}, count)))


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items()) + "}"

"""``calicoctl node slow``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from calico_core.cli.context import CliContext
from calico_core.cli.output import answer, note
from calico_core.cli.running import ask_node

_COLUMNS = {
    "Began (UTC)": "began",
    "ms": "ms",
    "Spent on, ms": "steps",
    "Endpoint": "endpoint",
    "Container": "container",
    "Failed": "error",
}


def print_slowest(context: CliContext, count: int) -> None:
    found = ask_node("slow")
    assert found is not None
    rows = [_row(each) for each in found["slowest"][:count]]
    answer(context, rows, _COLUMNS)
    note(f"{found['attaches']} attaches since the node started")


def _row(times: dict[str, Any]) -> dict[str, Any]:
    steps = {name.removesuffix("_ms"): ms for name, ms in times["steps"]}
    if times["error"]:
        steps["(failed in)"] = round(times["ms"] - sum(steps.values()), 2)
    began = datetime.fromtimestamp(times["began"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    _, _, endpoint = times["endpoint"].partition("/workload/")
    return {**times, "began": began, "endpoint": endpoint or times["endpoint"], "steps": steps}

"""The tutorials, done as they are written: every command of a ``console`` block, and what it prints.

Numbers and hashes differ from run to run and are compared as such; everything else must be as on the page.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from calico_core.lab.topology import Laboratory

pytestmark = pytest.mark.needs_root
TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SETTLE_S = 60.0


def _steps(page: str) -> list[tuple[str, str]]:
    """Commands with what they print."""
    steps = []
    for block in _BLOCK.findall(page):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            steps.append((command, output))
    return steps


def _shape(text: str) -> list[str]:
    """What stays the same: no figures, no hashes, no column widths."""
    text = re.sub(r"\bcali[0-9a-f]{11}\b", "cali#", text)
    text = re.sub(r"\d[\d.:/-]*", "#", text)
    text = re.sub(r"-{3,}", "--", text)
    return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if line.strip()]


def _run(command: str, exports: list[str]) -> str:
    script = "\n".join([*exports, command])
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("page", "lab", "needs"),
    [("first-two-containers.md", "tour", ()), ("two-hosts.md", "pair", ("etcd", "bird"))],
)
def test_the_tutorial_is_true(page: str, lab: str, needs: tuple[str, ...]) -> None:
    for program in needs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    name = f"{lab}-{uuid.uuid4().hex[:6]}"
    text = re.sub(rf"\b{lab}\b", name, (TUTORIALS / page).read_text())
    exports: list[str] = []
    try:
        for command, expected in _steps(text):
            if "activate" in command:  # the interpreter of the tests stands for it
                continue
            if command.startswith("export "):
                exports.append(command)
                continue
            deadline = time.monotonic() + _SETTLE_S
            is_question = "status" in command or "probe" in command or "route" in command
            while _shape(output := _run(command, exports)) != _shape(expected):
                if not is_question or time.monotonic() > deadline:
                    pytest.fail(f"{page}: {command}\nprinted\n{output}\nand the page says\n{expected}")
    finally:
        Laboratory.remove(name)

"""How the programs are run: what they are given, what they say, how they end."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from calico_core.dataplane.iptables.tools import Tools
from calico_core.errors import ToolFailed

NAMES = ("iptables-nft-save", "iptables-nft-restore", "ip6tables-nft-save", "ip6tables-nft-restore", "ipset")


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Tools:
    """Small scripts in the place of the programs."""
    for name in NAMES:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return Tools(backend="nft")


def test_what_a_program_prints_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a pipe holds."""
    tools = programs(tmp_path, monkeypatch, 'i=0; while [ $i -lt 5000 ]; do echo "line $i of $0 ä"; i=$((i+1)); done')
    lines = tools.save(6).splitlines()
    assert len(lines) == 5000
    assert lines[-1] == f"line 4999 of {tmp_path}/ip6tables-nft-save ä"


def test_a_script_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    tools = programs(tmp_path, monkeypatch, f"cat > {seen}")
    script = "".join(f"add set 10.0.{number // 250}.{number % 250}\n" for number in range(10_000))
    tools.restore_sets(script)
    assert seen.read_text() == script
    assert tools.counts["ipset_lines_executed"] == 10_000


def test_a_refusal_carries_the_code_and_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = programs(tmp_path, monkeypatch, "echo never mind; echo 'line 7 failed' >&2; exit 4")
    with pytest.raises(ToolFailed) as caught:
        tools.restore(4, "*filter\nCOMMIT\n")
    assert (caught.value.code, caught.value.stderr) == (4, "line 7 failed\n")
    assert caught.value.argv[0] == str(tmp_path / "iptables-nft-restore")
    assert tools.counts["iptables_restore_errors"] == 1


def test_one_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calico_core.dataplane.iptables.tools._TIMEOUT_S", 0.2)
    tools = programs(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; exec sleep 600")
    with pytest.raises(ToolFailed, match=r"no result after 0\.2 s"):
        tools.save_sets()
    noted = tmp_path / "pid"
    pids = noted.read_text().split() if noted.exists() else []  # it may not have come so far
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_no_descriptor_left_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = programs(tmp_path, monkeypatch, "exit 0")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, before[1]))
    try:
        with pytest.raises(ToolFailed):
            tools.save(4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

"""Campaigns, benchmarks and sessions that are started wrongly say so in a line and end with 2, before they begin."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


def start(module: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    importlib.import_module(f"tests.{module}").main()


@pytest.mark.parametrize(
    ("module", "arguments", "reason"),
    [
        ("campaigns.oracle.__main__", ("--cases", "0"), "'0' is not a number from 1 on"),
        ("campaigns.oracle.__main__", ("--replay", "missing.json"), "missing.json cannot be read: No such file"),
        ("campaigns.oracle.__main__", ("--replay", str(REPOSITORY / "README.md")), "README.md is not JSON"),
        ("campaigns.restarts", ("--count", "-1"), "'-1' is not a number from 1 on"),
        ("campaigns.restarts", ("--count", "0"), "'0' is not a number from 1 on"),
        ("campaigns.torture", ("--operations", "x"), "'x' is not a number from 1 on"),
        ("campaigns.sqlite_crash", ("--kills", "0"), "'0' is not a number from 1 on"),
        ("campaigns.scale", ("--local", "0"), "'0' is not a number from 1 on"),
        ("benchmarks.bench_throughput", ("100xfoo",), "'100xfoo' is neither others, receiver nor ENDPOINTSxPOLICIES"),
        ("benchmarks.bench_throughput", ("--rounds", "0"), "'0' is not a number from 1 on"),
        ("benchmarks.bench_policy", ("9z",), "invalid choice: '9z'"),
    ],
)
def test_bad_arguments(
    module: str,
    arguments: tuple[str, ...],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        start(module, *arguments, monkeypatch=monkeypatch)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "module",
    [
        *("campaigns.oracle.__main__", "campaigns.restarts", "campaigns.scale"),
        *("benchmarks.bench_dataplane", "benchmarks.bench_throughput"),
    ],
)
def test_who_is_not_root_is_told(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit) as ended:
        start(module, monkeypatch=monkeypatch)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("needs root")


@pytest.mark.parametrize(
    ("session", "arguments", "reason"),
    [
        ("bench", ("index", "nosuch"), "no benchmark is named nosuch; there are agent, cni"),
        ("cri", ("foo",), "'foo' is not a number of pods"),
        ("cri", ("0",), "'0' is not a number of pods"),
    ],
)
def test_sessions(session: str, arguments: tuple[str, ...], reason: str) -> None:
    pytest.importorskip("nox")
    argv = [sys.executable, "-m", "nox", "--no-venv", "-s", session, "--", *arguments]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_session_that_is_named_fails_where_its_tests_would_be_skipped(tmp_path: Path) -> None:
    test = tmp_path / "test_skipped.py"
    test.write_text("import pytest\n@pytest.mark.skipif(True, reason='no such program')\ndef test_it(): pass\n")
    argv = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-q", str(test)]
    for environment, code in (({}, 0), ({"CALICO_NO_SKIPS": "1"}, 1)):
        done = subprocess.run(
            [*argv, f"--rootdir={tmp_path}", "-c", os.devnull],
            env={**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout
        assert "no such program" in done.stdout or not code

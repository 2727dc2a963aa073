"""What becomes of the tool when somebody ends it, and of errors that nobody foresaw."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.cli.conftest import Calicoctl

if TYPE_CHECKING:
    from calico_core.datastore.records import TypedRecords

WAITING = """
import sys, time
import click
from calico_core.cli import main as tool
@tool.calicoctl.command()
def wait():
    try:
        click.echo("waiting")
        time.sleep(60)
    finally:
        click.echo("undone")
tool.COMMANDS["wait"] = ("__main__:wait", "")
sys.argv = ["calicoctl", "wait"]
tool.main()
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["INT", "TERM", "HUP"]
)
def test_what_was_begun_is_undone_on_the_way_out(number: signal.Signals, code: int) -> None:
    # whoever runs the tests may have them ignored
    argv = ["env", "--default-signal=INT,TERM,HUP", sys.executable, "-u", "-c", WAITING]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == ("undone\n", code)
    assert err.strip() in {"interrupted", "terminated"}


def test_who_wants_hang_ups_ignored_has_them_ignored() -> None:
    argv = ["nohup", sys.executable, "-u", "-c", WAITING.replace("time.sleep(60)", "input()")]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGHUP)
        out, _ = process.communicate("\n", timeout=30)
    assert (out, process.returncode) == ("undone\n", 0)


def run(*arguments: str | bytes, url: str, **more: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "calico_core.cli.main", "--datastore", url, *arguments]
    options: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
    return subprocess.run(argv, check=False, timeout=60, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def url(environment: pytest.MonkeyPatch, records: TypedRecords, tmp_path: Path) -> str:
    del environment, records
    return f"sqlite://{tmp_path}/calico.db"


def test_a_full_disk_is_told_in_a_line(url: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = run("policy", "show", url=url, stdout=full)
    assert done.returncode == 1
    assert done.stderr == "calicoctl: No space left on device\n"


def test_a_closed_standard_input_is_an_empty_one(url: str) -> None:
    done = run("policy", "apply", "-f", "-", url=url, preexec_fn=lambda: os.close(0))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "holds no document" in done.stderr


def test_who_closes_standard_output_wants_no_answer(url: str) -> None:
    done = run("policy", "show", url=url, stdout=None, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_nested_too_deeply_is_bad_input(url: str) -> None:
    done = run("policy", "apply", "-f", "-", url=url, input="[" * 5000)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_arguments_are_utf8(url: str) -> None:
    done = run(b"profile", b"\xff", b"rule", b"show", url=url)
    assert done.returncode == 2
    assert "argument 4 is not UTF-8" in done.stderr


def test_text_that_cannot_be_written_is_bad_input(calicoctl: Calicoctl) -> None:
    document = r'{"name": "p", "policy": {"selector": "a == \"\ud800\""}}'
    done = calicoctl("policy", "apply", "-f", "-", stdin=document)
    assert done.code == 2
    assert "UTF-8" in done.err

"""``calicoctl datastore``: to a file, from one, between real stores both ways; an abort leaves the old one ready."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from calico_core.datastore import transfer
from calico_core.datastore.etcd3 import Etcd3Datastore
from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.errors import InvalidRequest, Unavailable
from calico_core.interfaces.datastore import Datastore, DatastoreOptions, Put
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import EtcdServer

READY = "/calico/v1/Ready"
POOL = "/calico/v1/ipam/v4/pool/10.65.0.0-16"
STATUS = "/calico/felix/v1/host/h1/status"
COUNT = 300

Open = Callable[[str], Datastore]


@pytest.fixture
def open_store() -> Iterator[Open]:
    opened: list[Datastore] = []

    def make(url: str) -> Datastore:
        driver = Etcd3Datastore if url.startswith("etcd3") else SqliteDatastore
        opened.append(driver.open(url, DatastoreOptions()))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def fill(store: Datastore) -> dict[str, bytes]:
    """What must arrive."""
    wanted = {f"/calico/v1/config/K{number:04}": b"%d" % number for number in range(COUNT)}
    wanted |= {READY: b"true", POOL: b'{"cidr":"10.65.0.0/16"}', "/calico/v9/raw": b"\x00\xff", "/calico/v9/empty": b""}
    wanted |= {"/calico/v9/large": b"\xc3\xa4" * 200_000, "/calico/v9/larger": b"x" * 500_000}
    for key, value in wanted.items():
        store.put(key, value)
    store.put(STATUS, b"{}")
    store.put("/calico/v9/alive", b"", lease=store.lease(60).id)
    return wanted


def held(store: Datastore) -> dict[str, bytes]:
    return {entry.key: entry.value for entry in store.list("/calico/").entries}


def calicoctl(url: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "calico_core.cli.main", "--datastore", url, "datastore", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(params=["sqlite-to-etcd", "etcd-to-sqlite"])
def urls(request: pytest.FixtureRequest, etcd: EtcdServer, tmp_path: Path) -> tuple[str, str]:
    pair = (f"sqlite://{tmp_path}/calico.db", etcd.url)
    return pair if request.param == "sqlite-to-etcd" else pair[::-1]


def test_export_and_import(urls: tuple[str, str], open_store: Open, tmp_path: Path) -> None:
    source, target = urls
    wanted = fill(open_store(source))
    file = tmp_path / "all.jsonl"
    done = calicoctl(source, "export", "-f", str(file))
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = [json.loads(line)["key"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert found == sorted(wanted)
    assert calicoctl(source, "export").stdout == file.read_text(encoding="utf-8")
    done = calicoctl(target, "import", "-f", str(file))
    assert done.returncode == 0, done.stderr
    size = sum(map(len, wanted.values()))
    assert done.stdout == f"imported and checked {len(wanted)} records, {size} bytes\n"
    assert held(open_store(target)) == wanted
    # once more: it is not empty
    done = calicoctl(target, "import", stdin=file.read_text(encoding="utf-8"))
    assert done.returncode == 5
    assert f"the target holds {len(wanted)} records already" in done.stderr
    open_store(target).put("/calico/v1/config/Foreign", b"1")
    open_store(target).put(POOL, b"{}")
    done = calicoctl(target, "import", "--force", stdin=file.read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stderr
    assert held(open_store(target)) == wanted


def test_migrate(urls: tuple[str, str], open_store: Open) -> None:
    source, target = urls
    wanted = fill(open_store(source))
    done = calicoctl(source, "migrate", "--from", source, "--to", target)
    assert done.returncode == 0, done.stderr
    assert f"copied and checked {len(wanted)} records" in done.stdout
    assert held(open_store(target)) == wanted
    ready = open_store(source).get(READY)
    assert ready is not None
    assert ready.value == b"false"
    done = calicoctl(source, "migrate", "--from", source, "--to", target)
    assert done.returncode == 5
    done = calicoctl(source, "migrate", "--from", source, "--abort")
    assert done.returncode == 0
    again = open_store(source).get(READY)
    assert again is not None
    assert again.value == b"true"


def test_a_migration_that_fails_leaves_the_old_store_ready(open_store: Open, tmp_path: Path) -> None:
    source = f"sqlite://{tmp_path}/calico.db"
    wanted = fill(open_store(source))
    before = held(open_store(source))
    done = calicoctl(source, "migrate", "--from", source, "--to", "etcd3://127.0.0.1:1")
    assert done.returncode == 3
    assert "127.0.0.1:1: connection refused" in done.stderr
    assert held(open_store(source)) == before
    assert before[READY] == wanted[READY] == b"true"
    assert calicoctl(source, "migrate", "--from", source, "--to", source).returncode == 5
    missing = calicoctl(source, "migrate", "--from", f"sqlite://{tmp_path}/none.db", "--to", source)
    assert missing.returncode == 4
    assert not (tmp_path / "none.db").exists()


STOPS_BEFORE_COPYING = """
import os, signal
from calico_core.cli.main import main
from calico_core.datastore import transfer
copy = transfer.write_contents
def stop_and_copy(*arguments):
    os.kill(os.getpid(), signal.SIGSTOP)
    return copy(*arguments)
transfer.write_contents = stop_and_copy
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
main()
"""


def state_of(process: subprocess.Popen[bytes]) -> str:
    """As proc_pid_stat(5) has it."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_interrupted_migration(etcd: EtcdServer, open_store: Open, tmp_path: Path, blow: signal.Signals) -> None:
    """Ctrl-C, like the end of a terminal or of a service, puts the old store back into use; after kill -9 it takes
    ``--abort``. The new one is never ready."""
    source = f"sqlite://{tmp_path}/calico.db"
    store = open_store(source)
    wanted = fill(store)
    with subprocess.Popen(
        [sys.executable, "-c", STOPS_BEFORE_COPYING, "datastore", "migrate", "--from", source, "--to", etcd.url],
        env={**os.environ, "CALICO_DATASTORE": source},
    ) as process:
        try:
            eventually(lambda: state_of(process) == "T", within_s=60)
            etcd.pause()
            process.send_signal(signal.SIGCONT)
            eventually(lambda: state_of(process) == "S")  # it hangs in the middle of its copying
            process.send_signal(blow)
            assert process.wait(60) in {128 + blow, -signal.SIGKILL, 3}
        finally:
            etcd.resume()
            process.kill()
    if blow == signal.SIGKILL:
        assert held(store)[READY] == b"false"
        assert calicoctl(source, "migrate", "--from", source, "--abort").returncode == 0
    assert {key: value for key, value in held(store).items() if key in wanted} == wanted
    target = open_store(etcd.url)
    assert held(target).get(READY) in {None, b"false"}
    done = calicoctl(source, "migrate", "--force", "--from", source, "--to", etcd.url)
    assert done.returncode == 0, done.stderr
    assert held(target) == wanted


def test_what_is_written_meanwhile_is_copied_too() -> None:
    source, target = MemoryDatastore(), MemoryDatastore()
    wanted = fill(source)
    rounds: list[str] = []

    def write_late(step: str) -> None:
        rounds.append(step)
        if len(rounds) == 2:
            source.transact([], [Put("/calico/v1/config/Late", b"1"), Put("/calico/v1/config/K0000", b"changed")])

    transfer.migrate(source, target, on_step=write_late)
    assert held(target) == wanted | {"/calico/v1/config/Late": b"1", "/calico/v1/config/K0000": b"changed"}


def test_one_who_never_stops_writing_is_told() -> None:
    source, target = MemoryDatastore(), MemoryDatastore()
    fill(source)
    numbers = iter(range(1000))
    with pytest.raises(transfer.StillWritten):
        transfer.migrate(source, target, on_step=lambda _: source.put(POOL, b"%d" % next(numbers)) and None)
    assert held(source)[READY] == b"true"
    assert held(target)[READY] == b"false"


def test_a_target_that_dies_in_the_middle() -> None:
    source, target = MemoryDatastore(), MemoryDatastore()
    wanted = fill(source)
    steps: list[str] = []

    def kill(step: str) -> None:
        steps.append(step)
        target.faults.down = step.startswith("copying")

    with pytest.raises(Unavailable):
        transfer.migrate(source, target, on_step=kill)
    assert {key: value for key, value in held(source).items() if key in wanted} == wanted


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "line 2: is not JSON"),
        ('["/calico/a"]', "line 2: is not of the form"),
        ('{"key": "/elsewhere/a", "value": ""}', "line 2: is not of the form"),
        ('{"key": "/calico/a"}', "line 2: /calico/a needs a text"),
        ('{"key": "/calico/a", "value": 1}', "line 2: /calico/a needs a text"),
        ('{"key": "/calico/a", "base64": "?"}', "line 2: the value of /calico/a is broken"),
        ('{"key": "/calico/first", "value": ""}', "line 2: /calico/first stands there twice"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(tmp_path: Path, line: str, reason: str) -> None:
    lines = ['{"key": "/calico/first", "value": "1"}\n', line + "\n"]
    with pytest.raises(InvalidRequest) as refused:
        transfer.from_lines(lines)
    assert str(refused.value).startswith(reason)
    url = f"sqlite://{tmp_path}/calico.db"
    done = calicoctl(url, "import", stdin="".join(lines))
    assert done.returncode == 2
    assert reason in done.stderr
    assert not (tmp_path / "calico.db").exists()


def test_a_record_that_cannot_be_read_is_carried_and_told(tmp_path: Path, open_store: Open) -> None:
    url = f"sqlite://{tmp_path}/calico.db"
    done = calicoctl(url, "import", stdin=json.dumps({"key": POOL, "value": "{"}) + "\n")
    assert done.returncode == 0
    assert POOL in done.stderr
    assert held(open_store(url)) == {POOL: b"{"}

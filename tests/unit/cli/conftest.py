"""``calicoctl`` as a person runs it, against an embedded store in a temporary folder."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from calico_core.cli.main import main
from calico_core.datastore.records import TypedRecords
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.interfaces.datastore import DatastoreOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Calicoctl:
    """Runs the tool in this process, through the function that its executable calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, stdin: str = "") -> Done:
        self._monkeypatch.setattr(sys, "argv", ["calicoctl", *arguments])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        code = caught.value.code
        assert isinstance(code, int)
        return Done(code, out, err)

    def ok(self, *arguments: str, stdin: str = "") -> str:
        """What a call that must succeed prints."""
        done = self(*arguments, stdin=stdin)
        assert done.code == 0, done
        return done.out


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Nothing of the machine's own settings; no node runs in the folders named."""
    for name in ("CALICO_DATASTORE", "ETCD_ENDPOINTS", "ETCD_AUTHORITY", "ETCD_SCHEME", "CALICOCTL_OUTPUT", "HOSTNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CALICO_RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("CALICO_STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("CALICO_SOCKET", str(tmp_path / "run" / "node.sock"))
    monkeypatch.setenv("NODENAME", "rack-a")
    return monkeypatch


@pytest.fixture
def bare(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Calicoctl:
    """Without a datastore named."""
    return Calicoctl(environment, capsys)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[TypedRecords]:
    store = SqliteDatastore.open(f"sqlite://{tmp_path}/calico.db", DatastoreOptions())
    store.identity()  # the file is made
    yield TypedRecords(store)
    store.close()


@pytest.fixture
def calicoctl(environment: pytest.MonkeyPatch, bare: Calicoctl, records: TypedRecords, tmp_path: Path) -> Calicoctl:
    environment.setenv("CALICO_DATASTORE", f"sqlite://{tmp_path}/calico.db")
    return bare

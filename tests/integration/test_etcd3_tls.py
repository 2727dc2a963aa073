"""TLS with client certificates, users and passwords, against a real etcd: it works, and what does not is told with the
endpoint and the cause."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from calico_core.datastore import tls_verdict
from calico_core.datastore.etcd3 import Etcd3Datastore
from calico_core.errors import Unavailable
from calico_core.interfaces.datastore import Batch, DatastoreOptions
from tests.doubles.certificates import Authority, Pair
from tests.doubles.etcd_cluster import EtcdCluster


class Site:
    """A cluster that wants client certificates of ``ca``; ``stranger`` is an authority nobody trusts."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.stranger = Authority(folder / "ca"), Authority(folder / "stranger", "stranger")
        self.cluster = EtcdCluster(folder / "etcd", authority=self.ca)
        self.opened: list[Etcd3Datastore] = []

    def open(self, pair: Pair | None, ca: Authority | None = None, **options: str) -> Etcd3Datastore:
        files = {"cert_file": str(pair.certificate), "key_file": str(pair.key)} if pair is not None else {}
        given = DatastoreOptions(ca_file=str((ca or self.ca).certificate), timeout_s=3.0, **files, **options)
        self.opened.append(Etcd3Datastore.open(self.cluster.url, given))
        return self.opened[-1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("tls"))
    with site.cluster:
        yield site
        for store in site.opened:
            store.close()


def open_without_ca(site: Site, pair: Pair) -> Etcd3Datastore:
    given = DatastoreOptions(cert_file=str(pair.certificate), key_file=str(pair.key), timeout_s=3.0)
    site.opened.append(Etcd3Datastore.open(f"etcd3://{site.cluster.endpoints}", given))
    return site.opened[-1]


def refusal(site: Site, store: Etcd3Datastore) -> str:
    """The cause, the same for reading, writing and watching; nothing was applied."""
    causes = set()
    for call in (
        lambda: store.get("/calico/a"),
        lambda: store.put("/calico/a", b""),
        lambda: store.watch("/calico/", 0),
        lambda: store.lease(5),
    ):
        with pytest.raises(Unavailable) as refused:
            call()
        assert refused.value.endpoint == site.cluster.endpoints
        assert not refused.value.maybe_applied
        causes.add(refused.value.cause)
    (cause,) = causes
    return cause


def test_a_client_certificate_opens_the_door(site: Site) -> None:
    store = site.open(site.ca.issue("node"))
    revision = store.put("/calico/a", b"1")
    watch = store.watch("/calico/", revision - 1)
    assert isinstance(watch.next(30), Batch)
    assert store.lease(5).keep_alive()


def test_a_server_of_another_authority_is_not_trusted(site: Site) -> None:
    cause = refusal(site, site.open(site.ca.issue("node"), ca=site.stranger))
    assert cause == "TLS: the server's certificate is not accepted: unable to get local issuer certificate"


def test_without_a_file_the_authorities_count_that_the_host_trusts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client certificate means TLS, whatever the URL says."""
    pair = site.ca.issue("node")

    monkeypatch.setenv("SSL_CERT_FILE", str(site.ca.certificate))
    assert open_without_ca(site, pair).put("/calico/a", b"1")
    monkeypatch.setenv("SSL_CERT_FILE", str(site.stranger.certificate))
    assert "the server's certificate is not accepted" in refusal(site, open_without_ca(site, pair))


def test_without_a_file_nobody_knows_who_should_have_signed_our_certificate(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authority of clients is seldom one that the host trusts; what the certificate says of itself is told."""
    monkeypatch.setenv("SSL_CERT_FILE", str(site.ca.certificate))
    pair = site.stranger.issue("private")
    cause = f"TLS: the server refused our certificate {pair.certificate}"
    assert refusal(site, open_without_ca(site, pair)) == cause
    site.stranger.issue("private", is_expired=True)  # the same file names
    assert refusal(site, open_without_ca(site, pair)) == f"{cause}: certificate has expired"


def test_an_expired_certificate_is_named(site: Site) -> None:
    pair = site.ca.issue("old", is_expired=True)
    cause = refusal(site, site.open(pair))
    assert cause == f"TLS: the server refused our certificate {pair.certificate}: certificate has expired"


def test_a_certificate_of_another_authority_is_named(site: Site) -> None:
    pair = site.stranger.issue("node")
    cause = refusal(site, site.open(pair))
    assert (
        cause == f"TLS: the server refused our certificate {pair.certificate}: unable to get local issuer certificate"
    )


def test_a_missing_certificate_is_asked_for(site: Site) -> None:
    assert refusal(site, site.open(None)) == "TLS: the server wants a client certificate, and no cert_file is set"


def test_plaintext_is_told_to_use_tls(site: Site) -> None:
    store = Etcd3Datastore.open(f"etcd3://{site.cluster.endpoints}", DatastoreOptions(timeout_s=3.0))
    site.opened.append(store)
    assert "does it want TLS" in refusal(site, store)


def test_a_server_certificate_for_another_address_is_refused(tmp_path: Path) -> None:
    elsewhere = Elsewhere(tmp_path / "ca")
    with EtcdCluster(tmp_path / "etcd", authority=elsewhere) as cluster:
        pair = elsewhere.issue("node")
        store = Etcd3Datastore.open(
            cluster.url,
            DatastoreOptions(
                ca_file=str(elsewhere.certificate), cert_file=str(pair.certificate), key_file=str(pair.key)
            ),
        )
        try:
            with pytest.raises(Unavailable, match="TLS: the server's certificate is for another name") as refused:
                store.get("/calico/a")
            assert refused.value.endpoint == cluster.endpoints
        finally:
            store.close()


class Elsewhere(Authority):
    """Its servers are somewhere else."""

    def issue(self, name: str, *, is_server: bool = False, is_expired: bool = False, address: str = "") -> Pair:
        return super().issue(name, is_server=is_server, is_expired=is_expired, address=address or "192.0.2.1")


def test_renewed_files_are_read_on_reconnect(site: Site) -> None:
    pair = site.ca.issue("renewed", is_expired=True)
    store = site.open(pair)
    with pytest.raises(Unavailable, match="certificate has expired"):
        store.put("/calico/a", b"1")
    site.ca.issue("renewed")  # the same file names
    with pytest.raises(Unavailable, match="TLS"):
        store.put("/calico/a", b"1")  # this failure makes it look at the files
    revision = store.put("/calico/a", b"1")
    watch = store.watch("/calico/", revision)
    site.cluster.stop()
    site.ca.issue("renewed")
    site.cluster.start()
    watch.close()
    deadline = time.monotonic() + 10
    while True:
        try:
            entry = store.get("/calico/a")
            break
        except Unavailable:
            assert time.monotonic() < deadline
    assert entry is not None
    assert entry.value == b"1"


def test_user_and_password_over_tls(site: Site) -> None:
    ctl = site.cluster.etcdctl
    ctl("user", "add", "root:secret")
    ctl("user", "grant-role", "root", "root")
    ctl("user", "add", "agent:word")
    ctl("role", "add", "agent")
    ctl("role", "grant-permission", "agent", "--prefix=true", "readwrite", "/calico/")
    ctl("user", "grant-role", "agent", "agent")
    ctl("auth", "enable")
    try:
        pair = site.ca.issue("node")
        agent = site.open(pair, username="agent", password="word")
        revision = agent.put("/calico/b", b"1")
        assert isinstance(agent.watch("/calico/", revision - 1).next(30), Batch)
        with pytest.raises(Unavailable, match="permission denied") as refused:
            agent.put("/elsewhere/b", b"1")
        assert refused.value.endpoint == site.cluster.endpoints
        with pytest.raises(Unavailable, match="authentication failed"):
            site.open(pair, username="agent", password="guess").put("/calico/b", b"1")
        with pytest.raises(Unavailable, match="permission denied"):
            site.open(pair).put("/calico/b", b"1")  # the certificate's common name is no user
    finally:
        ctl("--user=root:secret", "auth", "disable")


def test_the_verdict_on_a_good_certificate_is_empty(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("node")
    files = (str(authority.certificate), str(pair.certificate), str(pair.key))
    assert tls_verdict.judge(*files) == ""
    assert tls_verdict.judge("", *files[1:]) == ""
    assert "PEM" in tls_verdict.judge(files[0], files[1], files[1])

"""What the cache says of the kinds that the API does not serve it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from calico_kubernetes.api import KINDS
from calico_kubernetes.cache import ApiCache
from tests.doubles.kubernetes_api import KubernetesApi
from tests.waiting import eventually

pytest.importorskip("kubernetes")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesApi]:
    made = KubernetesApi(tmp_path)
    yield made
    made.lists.set()
    made.stop()


@pytest.fixture
def cache(api: KubernetesApi) -> Iterator[ApiCache]:
    made = ApiCache(api.kubeconfig(), lambda: None)
    made.start()
    eventually(lambda: sum("watch" in path for path in api.requests) == len(KINDS))
    yield made
    made.stop()


@pytest.mark.parametrize("agrees_first", [False, True])
def test_a_history_that_is_gone_makes_a_kind_old_until_it_is_listed(
    api: KubernetesApi, cache: ApiCache, agrees_first: bool
) -> None:
    assert not cache.away()
    api.agrees_first = agrees_first
    api.lists.clear()
    before = len(api.requests)
    api.forget_history()
    eventually(lambda: sum("limit" in path for path in api.requests[before:]) == len(KINDS))
    assert cache.away() == {kind.name for kind in KINDS}
    assert cache.snapshot() is not None, "the last state stays"
    api.lists.set()
    eventually(lambda: not cache.away())


def test_a_kind_that_is_refused_is_away_alone(api: KubernetesApi, cache: ApiCache) -> None:
    api.refuse_kinds["service_accounts"] = 403
    api.forget_history()
    eventually(lambda: cache.away() == {"service_accounts"})
    del api.refuse_kinds["service_accounts"]
    eventually(lambda: not cache.away())

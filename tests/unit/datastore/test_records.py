"""The typed view: records in and out, and what does not decode is named instead of in the way."""

from __future__ import annotations

import pytest

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.errors import Conflict, InvalidRecord, KeyExists
from calico_core.model.bgp import NodeMesh
from calico_core.model.keys import BGP, BgpMeshKey, GlobalConfigKey

MESH = BgpMeshKey()


@pytest.fixture
def records() -> TypedRecords:
    return TypedRecords(MemoryDatastore())


def test_a_record_comes_back_as_it_was(records: TypedRecords) -> None:
    revision = records.create(MESH, NodeMesh(enabled=False))
    found = records.get(MESH)
    assert found == (MESH, NodeMesh(enabled=False), revision)
    assert records.list(BGP) == (found,)
    with pytest.raises(KeyExists):
        records.create(MESH, NodeMesh(enabled=True))


def test_a_swap_is_against_what_was_read(records: TypedRecords) -> None:
    records.put(MESH, NodeMesh(enabled=False))
    found = records.get(MESH)
    assert found is not None
    records.swap(found, NodeMesh(enabled=True))
    with pytest.raises(Conflict):
        records.swap(found, NodeMesh(enabled=False))
    with pytest.raises(Conflict):
        records.delete(MESH, mod_revision=found.mod_revision)
    assert records.delete(MESH)
    assert records.get(MESH) is None


def test_text_is_kept_as_it_is(records: TypedRecords) -> None:
    key = GlobalConfigKey(name="InterfacePrefix")
    records.put(key, "cali")
    entry = records.store.get(key.path)
    assert entry is not None
    assert entry.value == b"cali"
    found = records.get(key)
    assert found is not None
    assert found.record == "cali"


def test_a_bad_record_is_left_out_and_named_until_it_is_mended(records: TypedRecords) -> None:
    records.store.put(MESH.path, b'{"enabled": 7}')
    records.store.put("/calico/bgp/v1/global/as_num", b"64512")
    records.store.put("/calico/bgp/v9/unknown", b"?")
    assert [versioned.record for versioned in records.list("/calico/")] == ["64512"]
    assert set(records.bad_records) == {MESH.path}
    assert "$.enabled" in records.bad_records[MESH.path]
    with pytest.raises(InvalidRecord):
        records.get(MESH)
    records.put(MESH, NodeMesh(enabled=True))
    assert len(records.list(BGP)) == 2
    assert records.bad_records == {}
    records.store.put(MESH.path, b"{")
    records.list(BGP)
    records.store.delete(MESH.path)
    records.list(BGP)
    assert records.bad_records == {}

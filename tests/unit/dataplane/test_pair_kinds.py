"""Both kinds of pairs are ours, whatever the kernel that the tests run on can make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from calico_core.dataplane.linux.link_messages import Link
from calico_core.dataplane.linux.link_pair import HOST_MAC, are_peers, refuse_foreign
from calico_core.dataplane.linux.orphans import find_orphans
from calico_core.errors import InterfaceTaken

if TYPE_CHECKING:
    from pathlib import Path

ID = 7


def link(kind: str, **more: Any) -> Link:
    values = {"index": 3, "name": "cali1", "flags": 1, "mac": HOST_MAC, "peer_index": 2, "peer_namespace_id": ID}
    return Link(kind=kind, **{**values, **more})


class Links:
    """A namespace as its socket shows it: these links, and one id for every other namespace."""

    def __init__(self, *links: Link) -> None:
        self._links = list(links)

    def links(self) -> list[Link]:
        return self._links

    def namespace_id(self, _namespace_fd: int) -> int:
        return ID


@pytest.mark.parametrize(("kind", "is_ours"), [("veth", True), ("netkit", True), ("bridge", False), ("", False)])
def test_a_pair_of_ours(kind: str, *, is_ours: bool, tmp_path: Path) -> None:
    host_end = link(kind)
    host: Any = Links(host_end)
    inner = link(kind, index=2, name="eth0", peer_index=3)
    assert are_peers(host, host_end, inner, 5) is is_ours
    assert not are_peers(host, host_end, link(kind, index=9, peer_index=3), 5)
    orphans = find_orphans(host, ("tap", "cali"), processes=str(tmp_path))
    assert orphans == ((host_end,) if is_ours else ())
    assert find_orphans(host, ("tap",), processes=str(tmp_path)) == ()
    if is_ours:
        refuse_foreign(host_end, "the host")
    else:
        with pytest.raises(InterfaceTaken):
            refuse_foreign(host_end, "the host")

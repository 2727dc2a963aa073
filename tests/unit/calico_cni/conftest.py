from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.doubles.cni import CniSetup


@pytest.fixture
def namespace_fd() -> Iterator[int]:
    """Some namespace that is not our network namespace: making one of that kind would need root."""
    descriptor = os.open("/proc/self/ns/uts", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def setup(namespace_fd: int) -> Iterator[CniSetup]:
    made = CniSetup(namespace_fd)
    yield made
    made.integration.close()

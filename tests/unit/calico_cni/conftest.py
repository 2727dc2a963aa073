from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator

import pytest
from click.testing import Result

from calico_core import log
from calico_core.cli.failure import exit_code, explain
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


@pytest.fixture
def log_text() -> Iterator[io.StringIO]:
    """What is logged, as JSON lines; the logging of the test run is put back."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    log.configure(level="debug", style="json", stream=stream)
    yield stream
    root.handlers[:], root.level = before


def told(result: Result) -> tuple[int, str]:
    """As the tool ends: it tells of errors for all of its commands."""
    error = result.exception
    if not isinstance(error, Exception):
        return result.exit_code, result.output
    return exit_code(error), result.output + "\n".join(explain(error))

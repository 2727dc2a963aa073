"""Events with fields, in both forms."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from calico_core import log

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def root_logger() -> Iterator[None]:
    """Logging is the process's: leave it as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.getLogger("calico_core").setLevel(logging.NOTSET)


@pytest.mark.usefixtures("root_logger")
def test_json_is_one_object_a_line_with_bound_fields() -> None:
    stream = io.StringIO()
    log.configure(level="info", style="json", stream=stream)
    logger = log.get_logger("calico_core.test")
    with log.bound(request="r1"):
        logger.info("endpoint.attached", address="10.0.0.1", number=3)
    logger.info("endpoint.detached")
    logger.debug("not.shown")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["level"], first["request"], first["number"]) == ("endpoint.attached", "info", "r1", 3)
    assert "request" not in second


@pytest.mark.usefixtures("root_logger")
def test_console_quotes_what_needs_it() -> None:
    stream = io.StringIO()
    log.configure(level="debug", stream=stream)
    log.get_logger("calico_core.test").warning("a.thing", reason="two words", empty="", plain=1, percent="%s")
    line = stream.getvalue().rstrip()
    assert line.endswith("warning a.thing reason='two words' empty='' plain=1 percent=%s")


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\n14:00:00.000\u00a0info\u00a0forged", r"'a\n14:00:00.000\xa0info\xa0forged'"),
        ("\x1b[31mred", r"'\x1b[31mred'"),
        ("right\u202eleft", r"'right\u202eleft'"),
        ("\udc80", r"'\udc80'"),
        ("Zürich", "Zürich"),
    ],
)
def test_no_value_ends_its_line_or_commands_a_terminal(value: str, shown: str) -> None:
    stream = io.StringIO()
    log.configure(level="debug", stream=stream)
    log.get_logger("calico_core.test").warning("record.ignored", key=value)
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(f"record.ignored key={shown}")


@pytest.mark.usefixtures("root_logger")
def test_exceptions_bring_their_traceback() -> None:
    stream = io.StringIO()
    log.configure(style="json", stream=stream)
    try:
        raise KeyError("cause")
    except KeyError:
        log.get_logger("calico_core.test").exception("it.failed")
    entry = json.loads(stream.getvalue())
    assert "KeyError: 'cause'" in entry["traceback"]

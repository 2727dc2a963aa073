"""A setting in the datastore reaches every node: whatever its text is, it is taken or refused, and ends nothing."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from calico_core.errors import InvalidRequest
from calico_core.setting_fields import BY_CONFIG

_NUMBERS = st.sampled_from(
    ["0", "-0", "1e400", "inf", "nan", "9" * 5000, "0x" + "f" * 5000, "0x", "1_0", "²", "٣", "1.5"]
)
_WORDS = st.sampled_from(
    ["tcp", "udp", "none", "true", "10.0.0.0", "fd00::", "[::1]", "cali", "/x", "http://", "a=", "s"]
)
_TEXTS = st.lists(_NUMBERS | _WORDS | st.sampled_from(list(":/,=*[](?\0\n ")), max_size=5).map("".join) | st.text()


@pytest.mark.filterwarnings("ignore:Possible")  # of a pattern that means something else in another language
@settings(max_examples=150, deadline=None)
@example("9" * 5000)
@example("0x" + "f" * 5000)
@example("tcp:10.0.0.0/" + "9" * 5000 + ":22")
@example("tcp:" + "9" * 5000)
@given(_TEXTS)
def test_any_text_is_taken_or_refused(text: str) -> None:
    for field in set(BY_CONFIG.values()):
        with contextlib.suppress(InvalidRequest):
            field.parse(text)

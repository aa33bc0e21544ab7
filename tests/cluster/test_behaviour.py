"""The words of an image's tag."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "programs"))

from behaviour import Behaviour, read
from pod_http import request_length


@pytest.mark.parametrize(
    ("tag", "meaning"),
    [
        ("v1", Behaviour()),
        ("v2-err5-slow30", Behaviour(errors=0.05, slower_ms=30.0)),
        ("tail1-start8", Behaviour(tail=0.01, start_s=8.0)),
        ("v3-err0.5-mem512", Behaviour(errors=0.005, memory_mib=512.0)),
        ("crash", Behaviour(never_ready=True, lives_s=0.5, crash_reason="Error", exit_code=1)),
        ("crash20", Behaviour(lives_s=20.0, crash_reason="Error", exit_code=1)),
        ("oom", Behaviour(lives_s=3.0, crash_reason="OOMKilled", exit_code=137)),
        ("hang-neverready", Behaviour(hangs=True, never_ready=True)),
        ("error-slower-hanging", Behaviour()),
    ],
)
def test_a_tag_means_what_its_words_say_and_other_words_mean_nothing(tag: str, meaning: Behaviour) -> None:
    assert read(tag) == meaning


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET", 27),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", None),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 41),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", None),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\nGET", 58),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 52),
    ],
)
def test_a_request_ends_where_its_head_says(data: bytes, length: int | None) -> None:
    assert request_length(data) == length

"""Numbers as people read them: with their unit, never NaN, never more certain than they are."""

from __future__ import annotations

import re
from datetime import timedelta
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryd import wording

anything = st.none() | st.floats(-1e300, 1e300) | st.sampled_from([0.0, -0.0, 1e-300, -1e-300, 1e300, nan, inf, -inf])


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0009, "0.09 %"),
        (0.018, "1.8 %"),
        (0.0196, "2 %"),
        (0.123, "12.3 %"),
        (0.5, "50 %"),
        (1.0, "100 %"),
        (0.0, "0 %"),
        (-0.0, "0 %"),
        (0.00001234, "0.0012 %"),
        (-0.0009, "−0.09 %"),
        (-1e-12, "0 %"),
        (None, "–"),
        (nan, "–"),
        (inf, "–"),
    ],
)
def test_a_share_in_percent(share: float | None, text: str) -> None:
    assert wording.percent(share) == text


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (0.018, "+1.8 pt"),
        (-0.0004, "−0.04 pt"),
        (0.0003, "+0.03 pt"),
        (0.5, "+50 pt"),
        (0.0, "0 pt"),
        (-1e-12, "0 pt"),
        (None, "–"),
        (nan, "–"),
    ],
)
def test_a_difference_is_in_points_and_always_signed(difference: float | None, text: str) -> None:
    assert wording.points(difference) == text
    if text != "–":
        assert wording.points(difference, unit=False) + " pt" == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.018, 0.011, 0.026), "+1.8 pt (+1.1..+2.6)"),
        ((-0.001, -0.002, 0.0), "−0.1 pt (−0.2..0)"),
        ((0.018, None, 0.026), "+1.8 pt"),
        ((0.018, 0.011, None), "+1.8 pt"),
        ((None, 0.011, 0.026), "–"),
    ],
)
def test_an_interval(values: tuple[float | None, float | None, float | None], text: str) -> None:
    assert wording.interval(*values) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [(43870, "43 870"), (999, "999"), (1234567.4, "1 234 567"), (0, "0"), (None, "–"), (nan, "–"), (inf, "–")],
)
def test_a_count_has_its_thousands_apart(n: float | None, text: str) -> None:
    assert wording.count(n) == text


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (130.0, "2 min 10 s"),
        (timedelta(seconds=130), "2 min 10 s"),
        (0.0, "0 s"),
        (0.25, "250 ms"),
        (59.6, "1 min"),
        (3600.0, "1 h"),
        (3661.0, "1 h 1 min"),
        (90000.0, "1 d 1 h"),
        (None, "–"),
        (nan, "–"),
        (inf, "–"),
    ],
)
def test_a_span_of_time_has_at_most_two_units(time: timedelta | float | None, text: str) -> None:
    assert wording.span(time) == text


@pytest.mark.parametrize(("edge", "text"), [(250.0, "250 ms"), (0.5, "0.5 ms"), (1000.0, "1 s"), (2500.0, "2.5 s")])
def test_an_edge_in_the_unit_people_use(edge: float, text: str) -> None:
    assert wording.milliseconds(edge) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [(1, "1 request"), (2, "2 requests"), (0, "0 requests"), (1000, "1 000 requests"), (inf, "– requests")],
)
def test_one_is_singular(n: float, text: str) -> None:
    assert wording.plural(n, "request") == text


def test_an_irregular_plural() -> None:
    assert (wording.plural(1, "query", "queries"), wording.plural(3, "query", "queries")) == ("1 query", "3 queries")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.3, "▇▇▇░░░░░░░"), (0.0, "░" * 10), (1.0, "▇" * 10), (7.0, "▇" * 10), (-1.0, "░" * 10), (nan, "░" * 10)],
)
def test_a_bar_is_as_full_as_the_share(share: float, text: str) -> None:
    assert wording.bar(share) == text


@given(anything, anything, anything)
def test_no_text_ever_says_nan_or_infinity_or_an_exponent(a: float | None, b: float | None, c: float | None) -> None:
    texts = [wording.percent(a), wording.points(a), wording.interval(a, b, c), wording.count(a)]
    texts += [wording.plural(v, "request") for v in (a,) if v is not None]
    texts += [wording.span(v) for v in (a,) if v is None or v >= 0 or v != v]
    for text in texts:
        assert not re.search(r"nan|inf|[0-9]e", text)
        assert "−0 " not in text


@given(st.floats(1e-6, 1))
def test_a_share_is_off_by_less_than_a_tenth(share: float) -> None:
    value = float(wording.percent(share).removesuffix(" %")) / 100
    assert value == pytest.approx(share, rel=0.06)

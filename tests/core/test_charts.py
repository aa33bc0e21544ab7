"""The pictures of a rollout: whole, harmless, readable without colour, small however long the rollout was."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from xml.etree import ElementTree

import pytest
from test_story import regressed
from world import START

from canaryd import charts
from canaryd.charts.axes import Clock, nice_ticks
from canaryd.charts.thin import thinned
from canaryd.story import Gap, Metric, Point, Story

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</title><script>alert(1)</script>\x1b[31m\u202e\"'&"


@pytest.fixture(scope="module")
def story() -> Story:
    return Story.of(regressed())


CHARTS: dict[str, Callable[[Story], str]] = {
    "difference": lambda s: charts.difference(s, s.metrics[0] if s.metrics else Metric("errors", ())),
    "evidence": charts.evidence,
    "weight": charts.weight,
    "share": charts.share,
}


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def point(at: int, difference: float | None = 0.001, event: str = "errors") -> Point:
    when = START + timedelta(seconds=10 * at)
    low, high = (None, None) if difference is None else (difference - 0.01, difference + 0.01)
    verdict = "blind" if difference is None else "healthy"
    return Point(when, difference, low, high, 0.002, 0.5, 0.1, 100.0, 900.0, 0.01, 0.01, 0.0, verdict, event)


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_is_xml_with_a_text_alternative_and_no_style(name: str, story: Story) -> None:
    svg = CHARTS[name](story)
    root = parsed(svg)
    assert root.get("role") == "img"
    title, told = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None
    assert title.text
    assert told is not None
    assert told.text
    assert root.get("aria-labelledby") == f"{title.get('id')} {told.get('id')}"
    assert "style" not in svg
    assert "<script" not in svg


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_of_nothing_says_so(name: str) -> None:
    told = parsed(CHARTS[name](Story.of([]))).find(f"{SVG}desc")
    assert told is not None
    assert told.text


@pytest.mark.parametrize("name", CHARTS)
def test_every_id_that_is_used_is_there_and_differs_between_charts(name: str, story: Story) -> None:
    everything = "".join(chart(story) for chart in CHARTS.values())
    ids = re.findall(r' id="([^"]+)"', everything)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", CHARTS[name](story))) <= set(ids)


def test_names_and_reasons_from_outside_stay_text(story: Story) -> None:
    moments = tuple(replace(m, sentence=HOSTILE) for m in story.moments)
    gap = Gap(START + timedelta(seconds=90), START + timedelta(seconds=110), "blind", HOSTILE)
    hostile = replace(story, moments=moments, gaps=(gap,))
    metric = replace(story.metrics[0], name=HOSTILE, points=(point(8, event=HOSTILE), point(9)))
    for svg in (charts.difference(hostile, metric), charts.sparkline(metric), charts.evidence(hostile)):
        parsed(svg)
        assert "<script" not in svg
        assert "\x1b" not in svg
        assert "\u202e" not in svg


def test_a_time_without_numbers_is_hatched_with_a_word_and_no_line_crosses_it(story: Story) -> None:
    points = (*(point(i) for i in range(8, 11)), point(11, None), *(point(i) for i in range(12, 15)))
    gap = Gap(points[2].at, points[4].at, "blind", "no answer")
    told = charts.difference(replace(story, gaps=(gap,), until=points[-1].at), Metric("errors", points))
    assert ">blind<" in told
    assert "patternUnits" in told
    assert told.count('class="cd-canary"') == 2 + 1  # a line on either side, and the legend's
    whole = charts.difference(replace(story, until=points[-1].at), Metric("errors", (points[0], points[1], points[2])))
    assert whole.count('class="cd-canary"') == 1 + 1


def test_lines_differ_in_more_than_colour(story: Story) -> None:
    told = parsed(charts.evidence(story))
    dashes = {
        e.get("class"): e.get("stroke-dasharray") for e in told.iter() if e.get("class") in ("cd-step", "cd-rollback")
    }
    assert dashes["cd-step"] != dashes["cd-rollback"]


def test_ten_thousand_looks_make_a_small_picture_that_keeps_the_extremes(story: Story) -> None:
    points = [point(i) for i in range(10_000)]
    points[7_777] = replace(points[7_777], difference=0.5, high=0.6)
    long = replace(story, until=points[-1].at, moments=story.moments[:1], bands=())
    metric = Metric("errors", tuple(points))
    svg = charts.difference(long, metric)
    assert len(svg) < 100_000
    low = min(float(y) for y in re.findall(r"L[\d.]+,([\d.]+)", svg))
    assert low < 90  # the peak is near the top, though it is one look in ten thousand


def test_thinning_keeps_order_ends_and_extremes() -> None:
    values = [0.0] * 5000
    values[1234], values[4321] = -7.0, 9.0
    kept = thinned(list(enumerate(values)), 100, lambda p: p[1])
    assert len(kept) <= 130
    assert kept == sorted(kept)
    assert {kept[0][0], kept[-1][0], 1234, 4321} <= {i for i, _ in kept} | {0, 4999}
    assert thinned([1, 2, 3], 100) == [1, 2, 3]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.003, 0.011), (0, 0.00012), (-5e6, 3e7), (0, 0)])
def test_ticks_are_few_and_within(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 6)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-9 * abs(low) <= t <= high + 1e-9 * abs(high) for t in ticks)


@pytest.mark.parametrize("length", [1, 45, 100, 3600, 86_400, 40 * 86_400, 900 * 86_400], ids=lambda s: f"{s}s")
def test_the_axis_of_times_has_few_round_ticks(length: int) -> None:
    clock = Clock.of(START + timedelta(seconds=7), START + timedelta(seconds=7 + length), 0.0, 700.0)
    ticks = clock.ticks(7)
    assert len(ticks) <= 8
    assert all(clock.start <= at <= clock.end for at, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks)


def test_the_mark_of_a_rollback_points_down_and_says_why(story: Story) -> None:
    svg = charts.difference(story, story.metrics[0])
    assert "rollback: api 25 % → 0 %" in svg


def test_a_step_bar_is_full_where_the_steps_are_done() -> None:
    done = charts.step_bar([5, 25, 50], 1, 0.5, uid="x")
    assert done.count('class="cd-done"') == 2
    assert charts.step_bar([], -1, uid="x").count('class="cd-done"') == 0


def test_every_look_has_its_colours_in_light_dark_and_print() -> None:
    used = set(re.findall(r'class="(cd-[a-z-]+)"', "".join(chart(Story.of(regressed())) for chart in CHARTS.values())))
    assert all(f".{name}{{" in charts.CSS for name in used)
    for name in re.findall(r"var\(--cd-([a-z]+)\)", charts.CSS):
        assert charts.CSS.count(f"--cd-{name}:") == 4  # light, dark by the system, dark by choice, print

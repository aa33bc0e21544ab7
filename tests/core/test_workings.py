"""The printed arithmetic of a decision: with a pocket calculator one comes to the e-value that was decided by."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from test_story import records, regressed
from world import World, canary

from canaryd.stats.account import account
from canaryd.stats.evidence import Batch, Rules
from canaryd.workings import gains, row_of, workings

Body = dict[str, Any]


def bodies(world: World) -> list[Body]:
    return [dict(r.body) for r in reversed(records(world))]


@pytest.fixture(scope="module")
def rolled_back() -> list[Body]:
    return [dict(r.body) for r in reversed(regressed())]


@pytest.fixture(scope="module")
def long_run() -> list[Body]:
    """Forty looks at one step, so that tests have started twice more."""
    world = World(canary(steps=[{"weight": 5, "bake": "20m"}, {"weight": 50, "bake": "60s"}]), rps=100)
    world.turn(6)
    world.start("r2")
    world.turn(45)
    return bodies(world)


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"[+-]?\d+\.?\d*(?:e[+-]?\d+)?", text)]


def tables(lines: list[str]) -> list[tuple[float, float, list[list[float]]]]:
    """phi, nu and the rows of numbers (g, this look, sum, divided, softened) of each start."""
    out: list[tuple[float, float, list[list[float]]]] = []
    for line in lines:
        if head := re.match(r"start \d+:  phi = ([\d.]+), nu = (\S+)", line):
            out.append((float(head[1]), math.inf if head[2] == "infinite" else float(head[2]), []))
        elif out and re.match(r" +[\d.]+ +[+–-]", line):
            out[-1][2].append(numbers(line.replace("–", "0")))
    return out


def by_hand(lines: list[str]) -> float:
    """The e-value of everything together, from nothing but what is printed."""
    starts = []
    for phi, nu, rows in tables(lines):
        terms = []
        for row in rows:
            divided = row[2] / phi
            student = (nu + 1) / 2 * math.log(1 + 2 * divided / nu) if divided > 0 and math.isfinite(nu) else divided
            soft = min(divided, student)
            assert soft == pytest.approx(row[4], abs=2e-4)
            terms.append(math.exp(soft))
        starts.append(sum(terms) / len(terms))
    begun = [0.5, 0.125, 0.125, 0.125, 0.125]
    row_e = sum(w * e for w, e in zip(begun, [*starts, *[1.0] * (5 - len(starts))], strict=True))
    (line,) = (found for found in lines if found.startswith("all together:"))
    inside = line.split(" = ")[0]
    weight = float(re.search(r"ln\(([\d.]+) e\^", inside)[1])  # type: ignore[index]
    rest = sum(
        (float(w) if w else 1.0) * math.exp(float(e))
        for w, e in re.findall(r"\+ (?:([\d.]+) )?e\^([+-][\d.]+)", inside)
    )
    return math.log(weight * row_e + rest)


def with_account(found: list[Body]) -> list[Body]:
    return [b for b in found if b.get("account") and b.get("look")]


@pytest.mark.parametrize("run", ["rolled_back", "long_run"])
def test_the_printed_numbers_recombine_to_the_e_value_that_decided(run: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(run)
    checked = with_account(found)
    assert len(checked) >= 6
    for body in checked:
        lines = workings(body, found)
        assert by_hand(lines) == pytest.approx(body["evidence"]["logE"], rel=2e-3, abs=2e-3)
        assert any("agrees" in line for line in lines)


def test_later_starts_are_told_too(long_run: list[Body]) -> None:
    assert len(tables(workings(with_account(long_run)[-1], long_run))) == 3


def test_the_gains_of_the_looks_add_up_to_the_sum(rolled_back: list[Body]) -> None:
    (rollback,) = (b for b in rolled_back if b["kind"] == "rollback")
    lines = workings(rollback, rolled_back)
    (added,) = (line for line in lines if "all of them together gained" in line)
    total = numbers(added)[0]
    (_, _, rows) = tables(lines)[0]
    assert total == pytest.approx(max(row[2] for row in rows), abs=1e-3)


def test_one_bet_can_be_followed_from_its_counts_to_its_gain(rolled_back: list[Body]) -> None:
    (rollback,) = (b for b in rolled_back if b["kind"] == "rollback")
    lines = workings(rollback, rolled_back)
    counts = next(line for line in lines if "12:02:40" in line)
    assert "19 / 492" in counts
    assert "4 / 1 534" in counts
    x_c, n_c, x_s, n_s = 19, 492, 4, 1534
    i = next(i for i, line in enumerate(lines) if line.startswith("the bet with g"))
    _, a_c, a_s, q, p = numbers(lines[i])
    gain = (
        x_c * math.log(a_c / q)
        + (n_c - x_c) * math.log((1 - a_c) / (1 - q))
        + x_s * math.log(a_s / p)
        + (n_s - x_s) * math.log((1 - a_s) / (1 - p))
    )
    assert gain == pytest.approx(numbers(lines[i + 1])[-1], abs=2e-3)


def test_the_thresholds_are_those_of_the_document(rolled_back: list[Body]) -> None:
    text = "\n".join(workings(with_account(rolled_back)[-1], rolled_back))
    assert "ln(1/0.01) = +4.6052   reached: regressed" in text
    assert "ln(1/0.05) = +2.9957" in text


def test_nothing_is_printed_where_nothing_was_counted(rolled_back: list[Body]) -> None:
    assert workings(rolled_back[0], rolled_back) == []
    assert workings({}, []) == []
    assert workings({"account": {"epochs": [[1.0]], "phi": [1.0], "nu": [None]}}, []) == []


def test_the_last_word_of_a_rollout_still_shows_the_arithmetic_of_its_decision(rolled_back: list[Body]) -> None:
    rollback, settled = rolled_back[-2:]
    assert (rollback["kind"], settled["kind"]) == ("rollback", "rolled-back")
    assert workings(settled, rolled_back) == workings(rollback, rolled_back)


def test_a_sum_that_does_not_agree_is_said_to(rolled_back: list[Body]) -> None:
    body = with_account(rolled_back)[-1]
    wrong = {**body, "evidence": {**body["evidence"], "logE": body["evidence"]["logE"] + 1}}
    assert any("DOES NOT AGREE" in line for line in workings(wrong, rolled_back))


def test_starts_that_have_not_begun_are_cash() -> None:
    assert row_of([]) == pytest.approx(0.0)
    assert row_of([math.log(3.0)]) == pytest.approx(math.log(0.5 * 3 + 0.5))


def test_the_account_is_small(long_run: list[Body]) -> None:
    assert max(len(json.dumps(b["account"])) for b in with_account(long_run)) < 2000


def test_what_is_told_of_a_stretch_is_what_was_bet_on_it() -> None:
    """Expected share and tolerance of every row are those that the tests used, and explain what the sums gained."""
    world = World(canary(steps=[{"weight": 20, "bake": "20m"}]))
    world.turn(6)
    world.start("r2")
    world.turn(4)
    before = world.state().evidence
    world.turn(1)
    after = world.state().evidence
    assert before is not None
    assert after is not None
    rules, rows = Rules.of(world.canaries[0].spec), range(len(after.arrays["usable"]))
    told = account(rules, after.arrays, after.edges, rows, 0, before.arrays)["stretches"]
    assert {s["row"] for s in told} == {int(row) for row in np.flatnonzero(after.arrays["usable"])}
    batch = Batch([before.arrays], [before.edges], [rules])
    relative, absolute = batch.tolerance()
    for s in told:
        row = s["row"]
        assert s["pHat"] == pytest.approx(batch.rates()[0, row], rel=1e-7)
        assert (s["relative"], s["absolute"]) == pytest.approx((relative[0, row], absolute[0, row]), rel=1e-7)
        gained = after.arrays["worse"][0, row] - before.arrays["worse"][0, row]
        assert gains(s) == pytest.approx(gained, abs=1e-4)

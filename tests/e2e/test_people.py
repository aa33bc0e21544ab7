"""What people say to a running canaryd, typed as real commands, and what they do behind its back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from conftest import Stage
from scene import WEIGHTS, Scene, service, under_load

from canaryd.cli.exits import Exit
from canaryd.demo.lab import Lab
from canaryd.model import DecisionKind, Phase

pytestmark = [pytest.mark.envoy, pytest.mark.slow]
SLOW = {"interval": "2s", "steps": [{"weight": w, "bake": "10m"} for w in (10, 20, 40, 60, 80, 100)]}
PROMISED = 1.0  # seconds within which an override is answered
AT_MOST = 3.0  # the same on a machine that has other things to do, with the start of the command


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    services = [service(name) for name in ("words", "edits", "waits")]
    with Lab(tmp_path_factory.mktemp("lab"), services) as lab:
        yield lab


class Person:
    """Types commands and looks at the clock."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene, self.name = scene, name
        self.took: dict[str, float] = {}  # command → seconds from the first letter to the answer on the screen
        self.answered: dict[str, float] = {}  # → seconds from the word in the state to its answer

    def says(self, *words: str, exits: Exit = Exit.OK) -> str:
        began = time.monotonic()
        code, text = self.scene.say(words[0], self.name, *words[1:], "--answer-within", "10")
        self.took[" ".join(words[:1])] = time.monotonic() - began
        assert code == exits, text
        return text

    def overrides(self, action: str, *options: str, exits: Exit = Exit.OK) -> str:
        text = self.says(action, "--reason", "because", "--by", "anna", *options, exits=exits)
        said, answer = self.scene.store.audit(self.name, limit=1)[0]
        assert answer is not None
        self.answered[action] = (answer.at - said.at).total_seconds()
        return text


def test_every_word_is_answered_within_a_second_with_what_will_happen(lab: Lab, stage: Stage) -> None:
    """The interval is two seconds and the bake ten minutes: nothing here happens by itself."""
    scene = stage(lab)
    scene.canary("words", **SLOW)
    scene.run()
    anna = Person(scene, "words")
    with under_load(lab, "words"):
        began = time.monotonic()
        assert "rollout of revision r1 begins by anna" in anna.says("start", "--revision", "r1", "--by", "anna")
        scene.until_split("words", 90, 10) if scene.until_weight("words", 10) else None
        to_first_weight = time.monotonic() - began
        assert "words held at 10 %: paused by anna ('because')" in anna.overrides("pause")
        assert "goes on at 10 %: resumed by anna" in anna.overrides("resume")
        assert "10 % → 20 %: promoted by anna" in anna.overrides("promote")
        scene.until_split("words", 80, 20)
        stale = anna.overrides("abort", "--revision", "r0", exits=Exit.REFUSED)
        assert "it was said for revision r0, but r1 is being rolled out" in stale
        assert scene.state("words").weight == 20
        assert "20 % → 0 %: aborted by anna ('because')" in anna.overrides("abort")
        scene.until_split("words", 100, 0)
        assert "was rolled back" in anna.says("start", "--revision", "r1", exits=Exit.REFUSED)
        assert "r1 is tried again from the first step" in anna.overrides("retry")
        scene.until_weight("words", 10)
        assert "replaces r1" in anna.says("start", "--revision", "r2")
        scene.until_weight("words", 10)
        assert "the remaining steps need no proof" in anna.overrides("skip")
        assert "→ promotion: promoted in full by anna" in anna.overrides("promote", "--full")
        assert scene.until_phase("words", Phase.SUCCEEDED).stable_revision == "r2"
        scene.until_split("words", 0, 100)
    print(f"start to the first weight {to_first_weight:.2f} s;", "answers", anna.answered, "commands", anna.took)
    assert max(anna.answered.values()) < AT_MOST
    assert max(anna.took.values()) < AT_MOST + 2
    audit = [(o.action.value, a.accepted) for o, a in reversed(scene.store.audit("words")) if a is not None]
    assert audit == [
        ("pause", True),
        ("resume", True),
        ("promote", True),
        ("abort", False),
        ("abort", True),
        ("retry", True),
        ("skip", True),
        ("promote", True),
    ]


def test_a_weight_set_by_hand_is_seen_at_the_next_look_said_and_put_back(lab: Lab, stage: Stage) -> None:
    scene = stage(lab)
    scene.canary("edits", interval="1s", steps=[{"weight": 10, "bake": "10m"}, 100])
    scene.run()
    with under_load(lab, "edits"):
        scene.release("edits", "r1")
        scene.until_weight("edits", 10)
        scene.ticks("edits", 2)
        before = scene.state("edits").evidence
        lab.set_weights("edits", {"edits-blue": 30, "edits-green": 70})
        edited = time.monotonic()
        scene.until_split("edits", 90, 10)
        assert time.monotonic() - edited < 3
        (drift,) = scene.records("edits", DecisionKind.DRIFT)
        assert "somebody set the weight to 70 %" in drift.sentence
        assert "put back to 10 %" in drift.sentence
        scene.ticks("edits", 2)
    after = scene.state("edits")
    assert (after.phase, after.weight, after.step) == (Phase.PROGRESSING, 10, 0)
    assert before is not None
    assert scene.told("edits").count(DecisionKind.DRIFT) == 1


def test_scripts_can_wait_look_and_ask_why(lab: Lab, stage: Stage) -> None:
    scene = stage(lab)
    scene.canary("waits")
    scene.run()
    with under_load(lab, "waits"):
        assert scene.say("wait", "waits", "--timeout", "1s")[0] == Exit.OTHERWISE
        assert scene.say("start", "waits", "--revision", "r1")[0] == Exit.OK
        assert scene.say("wait", "waits", "--for", "promoted", "--timeout", "1s")[0] == Exit.UNDECIDED
        assert scene.say("wait", "waits", "--for", "promoted", "--timeout", "60s")[0] == Exit.OK
        code, text = scene.say("status", "waits", "-o", "json")
        body = json.loads(text)
        assert (code, body["phase"], body["stableRevision"]) == (Exit.OK, "Succeeded", "r1")
        code, text = scene.say("explain", "waits")
        assert code == Exit.OK
        assert "r1 on waits-green is stable now" in " ".join(text.split())
        lab.behave("waits-blue", errors=1.0)
        assert scene.say("start", "waits", "--revision", "r2")[0] == Exit.OK
        assert scene.say("wait", "waits", "--for", "promoted", "--timeout", "60s")[0] == Exit.ROLLED_BACK
        code, text = scene.say("explain", "waits")
        assert "100 %" in text
        assert scene.say("status", "nobody")[0] == Exit.NOT_FOUND
    assert [w for _, w in scene.steps("waits")] == [0, WEIGHTS[0], 0, 0]
    scene.daemon.stop()
    code, text = scene.say("abort", "waits", "--reason", "nobody there")
    assert code == Exit.UNAVAILABLE, text

"""`make mutate`: breaks the core on purpose, one named way at a time; every one must make a test of tests/core fail.

    python scripts/mutate.py [WORD ...]     only those whose name or file contains a word

Works on a copy of the tree in a temporary directory and never touches the tree itself. The tests that are nearest run
first, then all of tests/core. Exits with 1 when a mutation survives, or when the text that it replaces is not found
exactly once: then the code has moved on and the list below must follow.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("canaryd", "tests", "config", "pyproject.toml", "LICENSE")
# Tests that look at none of the modules below: texts, documents and how things are shown.
UNMOVED = ("docs", "config", "config_examples", "crd", "manifests", "mutated_documents", "render", "policy", "codec")
LONGEST = 600.0  # seconds for one run of the tests; tests that hang have noticed, too


@dataclass(frozen=True)
class Mutant:
    """One way to break the core. `near`: parts of the names of the test files that should notice."""

    name: str
    file: str
    old: str
    new: str
    near: tuple[str, ...]


def _in(file: str, *near: str) -> _Group:
    return _Group(f"canaryd/{file}.py", near)


class _Group:
    """Collects the mutations of one file."""

    def __init__(self, file: str, near: tuple[str, ...]) -> None:
        self.file, self.near = file, near

    def __call__(self, name: str, old: str, new: str) -> Mutant:
        return Mutant(name, self.file, old, new, self.near)


plan = _in("plan", "plan", "reconcile")
deployed = _in("plan", "cluster_stories", "plan")
reconcile = _in("reconcile", "reconcile", "kills")
saving = _in("reconcile", "cluster_stories", "kills")
objects = _in("config/objects", "objects")
measure = _in("measure", "reconcile", "measure", "kills")
dispersion = _in("stats/dispersion", "dispersion", "evidence", "simulation")
history = _in("stats/history", "history", "simulation")
counts = _in("counts", "counts")
bernoulli = _in("stats/bernoulli", "bernoulli")
evidence = _in("stats/evidence", "evidence", "judge")
guard = _in("stats/guard", "guard", "evidence")
spans = _in("stats/traces", "traces")
tally = _in("tally", "tally", "traces_rollout")
operations = _in("operations", "traces_rollout", "tally")
spanned = _in("spanned", "traces_rollout")
tracer = _in("tracer", "tracer", "traces_rollout")
assess = _in("stats/assess", "assess", "judge")
judge = _in("judge", "judge")
records = _in("records", "records", "reconcile")
share = _in("stats/share", "share")
store = _in("adapters/memory", "memory", "reconcile")

MUTANTS: tuple[Mutant, ...] = (
    # ── noise ──
    dispersion(
        "pods are taken to be alike",
        "    excess = (residual**2).sum(1) - phi0 * variance",
        "    excess = 0.0 * variance",
    ),
    dispersion(
        "few pods are trusted like many", "apply = (log_e > 0) & (degrees < HARD_TO_TELL)", "apply = log_e != log_e"
    ),
    dispersion(
        "failures in clusters count in full",
        "np.maximum(1.0, (squares + PRIOR_EVENTS) / (variance + PRIOR_EVENTS))",
        "np.maximum(1.0, 0.0 * variance)",
    ),
    guard(
        "the neighbours are not looked at",
        "(sign * z > GUARD_Z)",
        "(sign * z > 1e9)",
    ),
    measure(
        "an interval is judged before its neighbour is known",
        "found[self.first : None if self.source.simultaneous else -1]",
        "found[self.first :][:-1] or found[self.first :]",
    ),
    history(
        "past pods teach nothing",
        "return np.stack([tau2, degrees * worth])",
        "return np.stack([tau2, 0 * degrees * worth])",
    ),
    # ── spans ──
    spans("spans are judged at an edge of their own", "batch.a[name] + seen", "batch.a[name] + 0 * seen"),
    spans("what is shared again is made up", "np.log(SWITCH / STRATEGIES)", "np.log(SWITCH)"),
    spans("an operation's weight may change", '& ready & (a["weight"] == 0)', "& ready"),
    spans("operations weigh as much as they like", "EARLY) / np.maximum(count, 1.0)", "EARLY) / 1.0"),
    spans("sampling is taken to be alike", "(split[:, :2] >= needed[:, None]).all(-1)", "(split[:, 0] > -1e9)"),
    spans("a mismatch of sampling is no matter", "    alike &= ~unlike\n", ""),
    spans(
        "a neighbour never stands in",
        "counts.near[..., None, None], worse=True",
        "0 * counts.near[..., None, None] > 1, worse=True",
    ),
    spans("stable's spans are bet on at once", "LEAST_PAST = 20.0", "LEAST_PAST = 0.0"),
    spans("slow is what one in two is", "SLOW_SHARE = 0.1", "SLOW_SHARE = 0.5"),
    spans("nothing is ever shared again", "SWITCH = 0.01", "SWITCH = 1e-9"),
    spans("what only learns is bet on", "& scored[:, None, None] & (n_c > 0)", "& (n_c > 0)"),
    tally(
        "every call of a trace counts",
        "cut(span.operation, LONGEST), span.trace, arm",
        "cut(span.operation, LONGEST), span.id + span.trace, arm",
    ),
    tally("spans at the edge count twice", "not first < span.start <= last", "not first <= span.start <= last"),
    tally(
        "a restarted collector lost what it counted",
        "        if key.exporter in restarted:\n            out[key] = value\n",
        "        if key.exporter in restarted:\n            continue\n",
    ),
    tally("an unknown collector counts from zero", "        elif key.exporter in there:\n", "        else:\n"),
    operations("truncated spans are evidence", "work.scored and counts.complete,", "work.scored,"),
    operations("warming pods' spans are evidence", "canary.present and canary.young_requests <= 0", "canary.present"),
    operations("what has been counted is waited for again", "not in answers]\n", "not in ()]\n"),
    operations("spans decide while stable is upgraded", "if state.phase not in (*JUDGED, Phase.WAITING):", "if False:"),
    spanned("spans that do not come are seen", "len(held.waiting) > LATE", "len(held.waiting) > 99"),
    tracer(
        "answers come twice",
        "            del asked[query]\n            if future.cancelled()",
        "            if future.cancelled()",
    ),
    judge(
        "optional spans blind the rollout",
        "isinstance(m, TracesMetric) and not m.required",
        "isinstance(m, TracesMetric) and m.required",
    ),
    judge(
        "required spans are not waited for",
        "metric.required and finding.metric == metric.name",
        "not metric.required and finding.metric == metric.name",
    ),
    records("spans that were counted are not kept", "if seen.spans else {}", "if seen.spans and seen.hook else {}"),
    judge("a step is taken into an outage", "            and not self._is_outage()\n", ""),
    # ── the state machine ──
    plan(
        "a regression is ignored while paused",
        "if state.phase not in (Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING):",
        "if state.phase not in (Phase.PROGRESSING, Phase.PROMOTING):",
    ),
    plan("blindness reaches no deadline", "    _blind_too_long,\n    _paused,\n", "    _paused,\n"),
    plan(
        "no evidence is proof enough",
        "(state.skip_analysis and judged.verdict is Verdict.INCONCLUSIVE)",
        "(judged.verdict is Verdict.INCONCLUSIVE)",
    ),
    plan(
        "a step needs no confirmed share",
        "confirmed = judged.share is not None and judged.share.confirmed",
        "confirmed = judged.share is not None",
    ),
    plan("a step needs no bake time", "state.baked >= canary.spec.bake(state.step)", "state.baked >= timedelta(0)"),
    plan("time that was not scored bakes", "baked=state.baked + seen.scored", "baked=state.baked + passed"),
    plan("bake time is taken along to the next step", "baked=timedelta(0),", "baked=state.baked,"),
    plan(
        "a revert alarms people",
        "DecisionKind.REVERT, said, tell=True)",
        'DecisionKind.REVERT, said, tell=True, severity="critical")',
    ),
    plan(
        "what was rolled back starts again by itself",
        "if state.phase is Phase.PROMOTING or wanted == state.revision:",
        "if state.phase is Phase.PROMOTING or wanted == state.revision and state.phase is not Phase.ROLLED_BACK:",
    ),
    plan(
        "a newer revision takes over a promotion",
        "if state.phase is Phase.PROMOTING or wanted == state.revision:",
        "if wanted == state.revision:",
    ),
    plan(
        "blind time is never forgotten",
        "state = replace(state, blind=timedelta(0), blind_told=False,",
        "state = replace(state, blind_told=False,",
    ),
    plan(
        "the blind deadline rolls back though it should hold",
        "if spec.on_blind is OnBlind.ROLLBACK:",
        "if spec.on_blind is OnBlind.HOLD:",
    ),
    plan(
        "a clock set forward reaches every deadline",
        "passed = min(max(since, timedelta(0)), 2 * canary.spec.interval)",
        "passed = max(since, timedelta(0))",
    ),
    plan(
        "a clock set back takes time away",
        "passed = min(max(since, timedelta(0)), 2 * canary.spec.interval)",
        "passed = min(since, 2 * canary.spec.interval)",
    ),
    plan(
        "a hand on the weight is not mentioned",
        "return state, [(DecisionKind.DRIFT, told)]",
        "return state, []",
    ),
    plan(
        "a word for another revision is obeyed",
        "if said.revision and said.revision != state.revision:",
        "if not state.revision:",
    ),
    plan(
        "an answered word is obeyed again",
        "pending = [o for o in seen.overrides if o.id not in answered]",
        "pending = list(seen.overrides)",
    ),
    plan(
        "a person's word comes before a regression",
        "    _regressed,\n    _broken,\n    _word,\n",
        "    _word,\n    _regressed,\n    _broken,\n",
    ),
    plan(
        "the canary gets traffic before stable's rates are known",
        "if blind or not ready or not _knows_stable(state):",
        "if blind or not ready:",
    ),
    plan(
        "a rollback leaves the weight where it is",
        "phase=Phase.ROLLING_BACK, step=state.step, weight=0)",
        "phase=Phase.ROLLING_BACK, step=state.step, weight=state.weight)",
    ),
    plan(
        "the pools do not swap after a promotion",
        "(state.canary, state.stable) if swap else",
        "(state.stable, state.canary) if swap else",
    ),
    # ── the tick ──
    reconcile(
        "routed before it is saved",
        """            stored = self._save(case, stored, decision, seen)
            kinds += [decision.kind, *(kind for kind, _ in decision.extra)]
            wrote = self._route(case, stored, decision, before, seen)
""",
        """            wrote = self._route(case, replace(stored, state=decision.state), decision, before, seen)
            stored = self._save(case, stored, decision, seen)
            kinds += [decision.kind, *(kind for kind, _ in decision.extra)]
""",
    ),
    reconcile(
        "the route is not stamped with the version",
        "state.weight, version=stored.version)",
        "state.weight, version=0)",
    ),
    reconcile(
        "a writer that is shut out goes on",
        'log.warning("stale", canary=key, error=str(e))\n            raise',
        'log.warning("stale", canary=key, error=str(e))\n            return True',
    ),
    measure(
        "the watermark is not looked at", "first = held.through - (", "first = end - self.history * spec.interval - ("
    ),
    measure(
        "the stretch in which the weight changed is evidence",
        "return stretch.start >= state.routed + self.source.settle",
        "return stretch.end >= state.routed + self.source.settle",
    ),
    measure(
        "counters that still speak of the old weight are evidence",
        "return stretch.start >= state.routed + self.source.settle",
        "return stretch.start >= state.routed",
    ),
    measure(
        "traffic at a weight set by hand is evidence",
        " or route.weight != state.weight:\n            return False",
        ":\n            return False",
    ),
    measure(
        "no counters are calm instead of blind",
        "if newest is None or (before is not None and newest <= before):",
        "if newest is None:",
    ),
    measure(
        "a clock set back is not noticed",
        "if newest is not None and now < newest:",
        "if newest is None and now is None:",
    ),
    measure(
        "one long stretch bakes a step at once",
        "sum((min(s.end - s.start, spec.interval) for s in fresh), timedelta(0))",
        "sum((s.end - s.start for s in fresh), timedelta(0))",
    ),
    reconcile(
        "a route is taken over before any rollout",
        "if state.number == 0 and not state.stable_revision:\n            return self._adopt_route",
        "if state.number < 0:\n            return self._adopt_route",
    ),
    # ── a cluster: adoption, pods, quarrels, the way back ──
    deployed(
        "a service is adopted while requests are under way",
        "elif seen.at - state.routed < SETTLE:",
        "elif seen.at < state.routed:",
    ),
    deployed("pods of which none is ready keep their traffic", "if canary.ready == 0:", "if canary.ready < 0:"),
    deployed(
        "running out of memory counts although stable does, too",
        "if canary.killed_for_memory and not others.killed_for_memory:",
        "if canary.killed_for_memory:",
    ),
    deployed(
        "restarts are not compared pod for pod",
        "canary.restarts * max(others.wanted, 1) > 2 * others.restarts * canary.wanted",
        "canary.restarts > 2 * others.restarts",
    ),
    deployed(
        "pods that never become ready are waited for",
        "return _roll_back(canary, state, seen, view.overdue) if view.overdue else None",
        "return None",
    ),
    deployed("a weight is put back in every quarrel", "len(drifts) > DRIFTS", "len(drifts) > 10**9"),
    deployed("a raised weight is left alone in a quarrel", "return seen.route.weight < state.weight", "return True"),
    deployed(
        "a plain route is left alone while the canary has pods",
        "and pods is not None and pods.wanted == 0",
        "and pods is not None",
    ),
    deployed(
        "an upgrade that made stable worse counts as done",
        "replace(moved, evidence=_forget(moved), hook=failed)",
        "replace(moved, evidence=_forget(moved))",
    ),
    deployed(
        "all traffic goes back to an upgraded stable at once",
        "is not None and state.weight < 100:\n        return 0",
        "is not None:\n        return 0",
    ),
    deployed(
        "traffic goes back by every step although nothing differs",
        "is not None and state.weight < 100:\n        return 0",
        "is None and state.weight < 0:\n        return 0",
    ),
    saving(
        "looks outlive what somebody else has saved",
        "if held.version != stored.version:",
        "if held.version > stored.version:",
    ),
    saving(
        "a verdict waits for the next save",
        'grown = ("ticked", "evidence",',
        'grown = ("verdict", "ticked", "evidence",',
    ),
    saving(
        "looks leave no records behind",
        "held = _Unsaved(stored.version, state, (*held.records, *new), soon)",
        "held = _Unsaved(stored.version, state, new, soon)",
    ),
    saving(
        "all canaries have their turn for a save at once",
        "looks = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())",
        "looks = 0",
    ),
    saving(
        "looks wait for ever",
        "return self._looks[key] == 0",
        "return False",
    ),
    saving(
        "the workloads follow a state that is not saved",
        """            stored = self._save(case, stored, decision, seen)
            kinds += [decision.kind, *(kind for kind, _ in decision.extra)]
            wrote = self._route(case, stored, decision, before, seen)
            shaped = self._shape(case, stored, now)
""",
        """            shaped = self._shape(case, replace(stored, state=decision.state), now)
            stored = self._save(case, stored, decision, seen)
            kinds += [decision.kind, *(kind for kind, _ in decision.extra)]
            wrote = self._route(case, stored, decision, before, seen)
""",
    ),
    saving(
        "a weight is not left alone after all",
        "left_alone = state.contested is not None and seen.at < state.contested and",
        "left_alone = False and",
    ),
    objects("the second Canary of a Deployment has it, too", "for late in rivals[1:]:", "for late in rivals[2:]:"),
    objects(
        "the Deployment goes to the first in the alphabet",
        "(c.key not in holders, ages[c.key], c.key)",
        "(c.key not in holders, c.key)",
    ),
    objects(
        "a Deployment is taken from the Canary that has it",
        "(c.key not in holders, ages[c.key], c.key)",
        "(ages[c.key], c.key)",
    ),
    objects(
        "a Canary that was made anew keeps the form of the one before",
        'held.metadata.uid == one["metadata"]["uid"]:',
        "held.metadata.name:",
    ),
    # ── counts ──
    counts(
        "the first errors of a new series are lost",
        "elif key.exporter in reporting or key.pod in fresh:",
        "elif key.pod in fresh:",
    ),
    counts(
        "an exporter that comes late brings its whole past",
        "elif key.exporter in reporting or key.pod in fresh:",
        "else:",
    ),
    counts(
        "a restart counts backwards",
        "out[key] = value if again or value < old else value - old",
        "out[key] = value - old",
    ),
    counts("no answer at all is no failure", ' or key.code == "0"', ""),
    counts("a client that left is counted", "elif not classes.ignores(key):", "else:"),
    counts(
        "what never reached a pod is no failure",
        "failures=float(failures.sum()) + young_failures + lost,",
        "failures=float(failures.sum()) + young_failures,",
    ),
    counts(
        "lost requests count where served ones are not known",
        "if _is_whole(grown, after):",
        "if after.counters:",
    ),
    counts("lost requests are put to pods that are not there yet", "return 0.0 if warming else lost", "return lost"),
    counts(
        "clients that leave count backwards as losses",
        " or (key.name == UNREACHED and not key.exporter)\n",
        "\n",
    ),
    counts("a client is taken for a pod", " and key.name != UNREACHED}", "}"),
    measure(
        "a question that was not answered is calm",
        "        if answer.failed:\n            case.unseen",
        "        if answer.failed and not case.canary:\n            case.unseen",
    ),
    measure(
        "an outage over which a pod was first seen is evidence of its share",
        "if not stretch.whole and stretch.end",
        "if False and stretch.end",
    ),
    measure(
        "subsets of one Service are told apart by its name",
        'return ("", "") if found[0] == found[1] else found',
        "return found",
    ),
    counts(
        "warming pods count like the others",
        "    old = sorted(name for name in by_pod if name not in young)",
        "    old = sorted(name for name in by_pod if name)",
    ),
    # ── the tests ──
    bernoulli(
        "the proof of acceptable looks the other way",
        "inside = a_c >= (1 + r) * a_s + d",
        "inside = a_c <= (1 + r) * a_s + d",
    ),
    bernoulli(
        "the tolerance in points is left out of the null",
        "\n    q = np.minimum((1 + r) * p + d, 1 - TINY)\n    with",
        "\n    q = np.minimum((1 + r) * p, 1 - TINY)\n    with",
    ),
    bernoulli(
        "the projection forgets the tolerance in points",
        "    q = k * p + d\n",
        "    q = k * p\n",
    ),
    bernoulli("one arm alone is evidence", "inside | (n_c <= 0) | (n_s <= 0)", "inside"),
    evidence(
        "later epochs never begin",
        "due = scored & (t % EPOCH_INTERVALS == 0)",
        "due = scored & (t == 0)",
    ),
    evidence("no margin where no warm-up excuses", "HARD_MARGIN = 0.02", "HARD_MARGIN = 0.0"),
    evidence(
        "the budget excuses anything when traffic is low",
        "d = np.minimum(budget, LARGEST_MARGIN)",
        "d = budget",
    ),
    evidence(
        "bets are made after the outcome is known",
        "    if counts.scored.any():\n        _score(batch, counts)\n    _learn(batch, counts)\n",
        "    _learn(batch, counts)\n    if counts.scored.any():\n        _score(batch, counts)\n",
    ),
    evidence(
        "warming pods are judged",
        "x[0], n[0] = arm.failures - arm.young_failures, arm.requests - arm.young_requests",
        "x[0], n[0] = arm.failures, arm.requests",
    ),
    evidence(
        "stretches that are not evidence are bet on",
        "x_c, n_c, x_s, n_s = (np.where(scored[:, None], v, 0.0) for v in",
        "x_c, n_c, x_s, n_s = (v for v in",
    ),
    evidence(
        "the share of an old weight confirms the new one", 'a["share"][changed] = 0.0', 'a["share"][changed] *= 1.0'
    ),
    evidence(
        "stable's past judges while stable serves",
        "lonely = (counts.weight >= 1.0) & (n_s == 0) & (long_n > 0)",
        "lonely = (counts.weight >= 0.0) & (long_n > 0)",
    ),
    evidence(
        "a long absence makes the budget large",
        'usual = counts.seconds <= LONGEST_USUAL * batch.per("interval")',
        "usual = counts.seconds >= 0",
    ),
    assess("more weight than one is given away", "WEIGHT_TRACES = 0.05", "WEIGHT_TRACES = 0.5"),
    share("a share without a lower limit is confirmed", "confirmed = too_low >= need and (", "confirmed = ("),
    # ── verdict, record, store ──
    judge(
        "a metric that cannot be seen is healthy",
        "elif blind or self._blinding(findings):",
        "elif blind:",
    ),
    judge(
        "the unseen is judged by what was known",
        "        if self.s.unseen:\n            return",
        "        if False:\n            return",
    ),
    judge(
        "a family without proof is healthy", "            proven >= wanted\n            and all(", "            all("
    ),
    judge("half the evidence to roll back does not stop a step", "            and self.log_e < self.alarm / 2\n", ""),
    judge(
        "silence of one arm is not noticed",
        "EXPECTED_BEFORE_SILENCE_COUNTS = 7.0",
        "EXPECTED_BEFORE_SILENCE_COUNTS = 1e12",
    ),
    judge(
        "half of the threshold rolls back",
        "self.regressed = self.log_e >= self.alarm",
        "self.regressed = self.log_e >= self.alarm / 2",
    ),
    records("two records have one number", 'f"{canary.key}/{number + i}"', 'f"{canary.key}/{number}"'),
    records(
        "looks that counted evidence are not kept",
        "if decision.tell or seen.scored or seen.spans:",
        "if decision.tell:",
    ),
    store("the version is not compared", "if current.version != version:", "if current.version < 0:"),
)


def copy_to(directory: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, directory / name)


def run_tests(directory: Path, files: list[str], done: Sequence[str] = ()) -> str:
    """Runs these tests on the copy, without those in `done`; the end of pytest's words, empty when all passed."""
    environment = {**os.environ, "PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    argv += [f"--ignore=tests/core/test_{name}.py" for name in UNMOVED] + [f"--ignore={name}" for name in done]
    try:
        result = subprocess.run(
            [*argv, *files],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "it took too long"
    if result.returncode in (0, 5):  # 5: no test was there to fail
        return ""
    return (result.stdout + result.stderr)[-600:] or "failed"


def near(directory: Path, words: tuple[str, ...]) -> list[str]:
    """Test files whose names contain one of the words, in the order of the words."""
    tests = sorted((directory / "tests" / "core").rglob("test_*.py"))
    found = dict.fromkeys(t for word in words for t in tests if word in t.stem)
    return [str(t.relative_to(directory)) for t in found]


class Tree:
    """The copy on which mutations are tried."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._sound: dict[tuple[str, ...], str] = {}  # files -> what pytest says without any mutation

    def outcome(self, mutant: Mutant) -> str:
        """ "caught", or what is wrong: it survived, its text is not there once, or the tests fail without it."""
        file = self.directory / mutant.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            return f"NOT FOUND: its text is there {text.count(mutant.old)} times"
        close = near(self.directory, mutant.near)
        for files, done in ((close, []), (["tests/core"], close)):
            if not files:
                continue
            if said := self._unsound(files, done):
                return f"UNKNOWN: tests fail without any mutation: {said.splitlines()[-1]}"
            file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
            try:
                if run_tests(self.directory, files, done):
                    return "caught"
            finally:
                file.write_text(text, encoding="utf-8")
        return "SURVIVED"

    def _unsound(self, files: list[str], done: list[str]) -> str:
        """What these tests say without any mutation, asked once; empty when they pass."""
        key = (*files, "without", *done)
        if key not in self._sound:
            self._sound[key] = run_tests(self.directory, files, done)
        return self._sound[key]


def report(tree: Tree, mutants: list[Mutant]) -> list[str]:
    """Try each; one line for each; what is wrong at the end."""
    wrong = []
    for mutant in mutants:
        began = time.monotonic()
        outcome = tree.outcome(mutant)
        if outcome != "caught":
            wrong.append(f"{mutant.name}: {outcome}")
        module = mutant.file.removeprefix("canaryd/").removesuffix(".py")
        print(f"{module:<16} {mutant.name:<62} {outcome} ({time.monotonic() - began:.0f} s)", flush=True)
    return wrong


def main(words: list[str]) -> int:
    """Exit status."""
    mutants = [m for m in MUTANTS if not words or any(word in m.name or word in m.file for word in words)]
    with tempfile.TemporaryDirectory(prefix="canaryd-mutate-") as name:
        copy_to(Path(name))
        wrong = report(Tree(Path(name)), mutants)
    print(f"\n{len(mutants) - len(wrong)} of {len(mutants)} mutations caught")
    for line in wrong:
        print(f"  {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

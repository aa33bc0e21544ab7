"""The whole story in a cluster, for a person who watches: three releases under live load, told by kubectl and Events.

From the clone's root: `make demo-cluster`, or PYTHONPATH=tests/cluster:. python -m demo [--keep]

Everything is real and on this machine (README.md beside this file): API server, controllers, mesh, Prometheus, kubectl
and two replicas of canaryd as their ServiceAccount. It only starts the parts, applies three Canaries, changes three
images and adds up what became of every request. It decides nothing, and it writes only to a temporary directory.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from bench import Bench, BenchPrometheus, netns, tools
from bench.bench import obstacle
from bench.load import Load, Totals
from release_scenes import ACCOUNT, NAMESPACE, SETTLED, Canaryd, Service, manifest, now, settings
from rich.console import Console
from rich.text import Text

from canaryd import wording
from canaryd.demo.processes import Child, LabError, wait_until

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 100  # columns at most
STEPS = (5, 10, 25, 50)
DEADLINE = 600.0  # seconds until the demo stops waiting for the ends
DRAINED = 3.0  # seconds of load after the canaries are gone
ENDS = {"Succeeded": "promoted", "RolledBack": "rolled back"}
STYLES = {"Succeeded": "green", "RolledBack": "red", "Progressing": "cyan", "Promoting": "cyan"}
PLAYED = ("Deployment", "PodDisruptionBudget", "Service", "NetworkPolicy", "ConfigMap")  # two processes instead


@dataclass(frozen=True)
class Story:
    """One release and how it should end."""

    name: str
    tag: str
    told: str
    wanted: str

    @property
    def image(self) -> str:
        return f"demo/app:{self.tag}"


STORIES = (
    Story("checkout", "v2", "as good as v1", "Succeeded"),
    Story("payment", "v2-err5", "fails 5 % of its requests", "RolledBack"),
    Story("search", "v2-slow30", "never fails, but takes 38 ms instead of 8", "RolledBack"),
)


@dataclass
class Tail:
    """What a child has written since the last time, in whole lines."""

    child: Child
    read: int = 0

    def lines(self) -> list[str]:
        data = self.child.log.read_bytes()[self.read :] if self.child.log.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        self.read += len(whole)
        return whole.decode(errors="replace").splitlines()


@dataclass
class Show:
    """One run of the demo."""

    directory: Path
    keep: bool
    rate: int  # requests per second in all
    interval: int  # seconds
    console: Console
    record: Path | None = None
    began: float = field(default_factory=time.monotonic)
    watched: list[str] = field(default_factory=list)  # lines of `kubectl get canary -w`
    table: Tail | None = None  # `kubectl get canary -w`
    events: Tail | None = None  # `kubectl get events -w`
    ended: dict[str, datetime] = field(default_factory=dict)  # when a release was first seen at its end

    def run(self) -> int:
        self.say(f"[bold]canaryd in a cluster[/]: three releases, {self.rate} requests/s, all on this machine")
        for story in STORIES:
            self.plain(f"  {story.name:<9} {story.image:<19} {story.told}")
        with ExitStack() as stack:
            bench = stack.enter_context(Bench(self.directory))
            prometheus = self._bring_up(bench)
            self._install(bench)
            running = Canaryd(bench, self.directory, self._settings(prometheus))
            stack.callback(running.stop)
            self._start_canaryd(running)
            load = self._start_services(bench)
            self._apply(bench)
            released = self._release(bench)
            self._watch(bench)
            time.sleep(DRAINED)
            totals = load.between() if self.keep else load.stop()
            code = self._conclude(bench, totals, released)
            if self.keep:
                self._stay(bench)
        return code

    # ── before ───────────────────────────────────────────────────────────────────────────────────────────────

    def _bring_up(self, bench: Bench) -> BenchPrometheus:
        self.say("\n[bold]The cluster[/]")
        layers: tuple[tuple[str, Callable[[], object]], ...] = (
            ("etcd and kube-apiserver", bench.start_control_plane),
            ("controllers, scheduler, a node whose pods answer on their own addresses", bench.start_cluster),
            ("istiod, and Envoy as its gateway", bench.start_mesh),
            ("Prometheus", bench.start_prometheus),
        )
        for what, start in layers:
            began = time.monotonic()
            start()
            self.plain(f"  ✓ {what}, {time.monotonic() - began:.1f} s")
        prometheus = bench.start_prometheus()
        prometheus.configure(scrape=f"{max(self.interval // 2, 1)}s")
        return prometheus

    def _install(self, bench: Bench) -> None:
        self.say("\n[bold]canaryd[/]")
        words = ["manifests", "canaryd", "--watch-namespace", NAMESPACE]
        self.command(f"canaryd {' '.join(words)} | kubectl apply --server-side -f -")
        printed = subprocess.run(
            [sys.executable, "-m", "canaryd", *words], check=True, capture_output=True, text=True, cwd=ROOT
        ).stdout
        wanted = [m for m in yaml.safe_load_all(printed) if m["kind"] not in PLAYED]
        answer = bench.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(wanted)).stdout
        for line in answer.splitlines():
            self.plain(f"  {line}", style="dim")
        bench.plane.await_definitions({"canaries.canaryd.io"})
        account = bench.client("canaryd")
        wait_until(lambda: account.can("list", "deployments", NAMESPACE), "the rights of canaryd", 30)

    def _settings(self, prometheus: BenchPrometheus) -> dict[str, Any]:
        out = settings(prometheus, scrape=f"{max(self.interval // 2, 1)}s")
        out["cluster"] = {"namespaces": [NAMESPACE], "lease": {"namespace": "canaryd"}}
        return out

    def _start_canaryd(self, running: Canaryd) -> None:
        for identity in ("canaryd", "canaryd-2"):
            running.start(identity)
        leader = running.leader()
        which = running.replicas.index(leader) + 1
        self.plain(f"  ✓ two replicas run as {ACCOUNT}; replica {which} leads")
        self.plain("    (processes with the account's token instead of pods: there are no kubelets here)")

    def _start_services(self, bench: Bench) -> Load:
        self.say("\n[bold]Three services under load[/]: a Deployment of 3 pods, a Service, a VirtualService each")
        for story in STORIES:
            bench.start_app(story.name)
        for story in STORIES:
            bench.existing_app(story.name).await_available()
        load = bench.load(self.rate, *(f"{story.name}.{NAMESPACE}.svc.cluster.local" for story in STORIES))
        seen = load.await_requests(2 * self.rate)
        self.plain(f"  ✓ {wording.count(seen.requests)} requests answered, {len(seen.failures)} failed")
        return load

    def _canaries(self) -> list[dict[str, Any]]:
        plan = {
            "steps": [{"weight": weight, "bake": f"{self.interval}s"} for weight in STEPS],
            "interval": f"{self.interval}s",
            "warmUp": "0s",
            "budget": {"share": "1%"},
        }
        return [manifest(story.name, **plan) for story in STORIES]

    def _apply(self, bench: Bench) -> None:
        """Three Canaries; returns when canaryd has taken the services into its care."""
        canaries = self._canaries()
        file = self.directory / "canaries.yaml"
        file.write_text(yaml.safe_dump_all(canaries, sort_keys=False))
        self.say("\n[bold]Three Canaries[/], all alike")
        shown = yaml.safe_dump({"spec": canaries[0]["spec"]}, sort_keys=False, default_flow_style=None, width=WIDTH - 8)
        for line in shown.splitlines():
            self.plain(f"  {line}", style="dim")
        self.command("kubectl apply -f canaries.yaml")
        for line in bench.kubectl("apply", "-f", str(file)).stdout.splitlines():
            self.plain(f"  {line}")
        kubectl = [str(bench.tools["kubernetes"] / "kubectl"), "--kubeconfig", str(bench.kubeconfig()), "-n", NAMESPACE]
        events = ["get", "events", "-w", "--field-selector", "involvedObject.kind=Canary", "-o"]
        self.events = Tail(bench.nursery.start("events", [*kubectl, *events, r'jsonpath={.reason}|{.message}{"\n"}']))
        services = [Service(bench, s.name, bench.existing_app(s.name)) for s in STORIES]
        for one in services:
            wait_until(lambda one=one: self._told() or bool(one.status().get("stableRevision")), one.name, 120, 0.2)
        for one in services:
            one.adopted()
        self._told()
        watch = [*kubectl, "get", "canary", "-w"]
        self.table = Tail(bench.nursery.start("watch", watch))

    def _release(self, bench: Bench) -> datetime:
        since = now()
        self.say("\n[bold]Three new images[/]")
        for story in STORIES:
            words = ["set", "image", f"deployment/{story.name}", f"app={story.image}"]
            self.command(f"kubectl {' '.join(words)}")
            bench.kubectl("-n", NAMESPACE, *words)
        return since

    # ── meanwhile ────────────────────────────────────────────────────────────────────────────────────────────

    def _watch(self, bench: Bench) -> None:
        """Show what kubectl and the Events say until every release has ended and its canary is at 0."""
        self.console.print()
        self.command("kubectl get canary -w")
        services = [Service(bench, s.name, bench.existing_app(s.name)) for s in STORIES]
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            self._told()
            for one in services:
                if one.name not in self.ended and one.phase() in SETTLED:
                    self.ended[one.name] = now()
            gone = all(s.app.deployment()["spec"]["replicas"] == 0 for s in services)
            if len(self.ended) == len(services) and gone:
                break
            time.sleep(0.5)
        time.sleep(1.0)  # the last words
        self._told()

    def _told(self) -> bool:
        """Print what is new; always False, so that it can stand in a condition."""
        for row in self.table.lines() if self.table else ():
            self.watched.append(row)
            phase = next((word for word in STYLES if word in row.split()), "")
            self.console.print(Text(row[:WIDTH], style=STYLES.get(phase, "")), soft_wrap=True)
        for line in self.events.lines() if self.events else ():
            reason, _, message = line.partition("|")
            if message:
                self._sentence(reason, message)
        return False

    def _sentence(self, reason: str, message: str) -> None:
        style = "yellow" if reason.startswith(("Rollback", "Rolled")) else "dim"
        text = Text(f"{reason}: {message}", style=style)
        for line in text.wrap(self.console, min(self.console.width, WIDTH) - 4):
            self.console.print(Text("    ") + line, soft_wrap=True)

    # ── after ────────────────────────────────────────────────────────────────────────────────────────────────

    def _conclude(self, bench: Bench, totals: Totals, since: datetime) -> int:
        self.say("\n[bold]What became of them[/]")
        good = 0
        for story in STORIES:
            one = Service(bench, story.name, bench.existing_app(story.name))
            right, told = self._one(one, story, since)
            good += right
            self.plain(f"{'✓' if right else '✕'} {told}", style="green" if right else "red")
            self.plain(f"    {self._served(story, totals)}")
        calls = bench.audit.counts(ACCOUNT, since=since, until=max(self.ended.values(), default=None))
        lease = sum(n for (_, resource), n in calls.items() if resource == "leases")
        rest = sum(calls.values()) - lease
        self.plain(
            f"\nrequests lost: {len(totals.lost)} of {wording.count(totals.requests)}; "
            f"canaryd asked the API server {rest} times in the three rollouts, {rest / len(STORIES):.0f} each"
        )
        self.plain(f"({lease} more renewed the Lease of its leader)")
        took = wording.span(time.monotonic() - self.began)
        self.plain(f"{good} of {len(STORIES)} releases ended as they should, {took} in all.")
        if not self.keep:
            self.plain("To play: make demo-cluster KEEP=1 leaves it running, for kubectl and `kubectl canary`.")
        if self.record:
            self.record.write_text("\n".join(self.watched) + "\n")
        return 0 if good == len(STORIES) and not totals.lost else 1

    def _one(self, one: Service, story: Story, since: datetime) -> tuple[bool, str]:
        """Whether it ended as it should, and the words about it."""
        phase = one.phase()
        stable = one.images(f"{story.name}-stable")
        pods = one.app.deployment()["spec"]["replicas"]
        image = story.image if story.wanted == "Succeeded" else "demo/app:v1"
        right = phase == story.wanted and pods == 0 and stable == {image}
        words = f"{story.name:<9} {story.tag} {story.told}: {ENDS.get(phase, phase)}"
        if one.name in self.ended:
            words += f" after {wording.span(self.ended[one.name] - since)}"
        return right, f"{words}\n    stable runs {', '.join(sorted(stable))}; canary at {wording.plural(pods, 'pod')}"

    def _served(self, story: Story, totals: Totals) -> str:
        """Requests and failures of this service, and those that the new version answered."""
        mine = {story.name, f"{story.name}-stable"}
        canary = failed = requests = 0
        for second in totals.by_second.values():
            for (workload, tag, status), n in second.items():
                if workload in mine:
                    requests += n
                    canary += n if tag == story.tag else 0
                    failed += n if tag == story.tag and status >= 500 else 0
        lost = sum(1 for f in totals.lost if f.authority.split(".")[0] == story.name)
        return (
            f"{wording.count(requests)} requests, {wording.count(canary)} of them answered by {story.tag}: "
            f"{wording.count(failed)} failed; lost: {lost}"
        )

    # ── to play ──────────────────────────────────────────────────────────────────────────────────────────────

    def _stay(self, bench: Bench) -> None:
        """Keep everything running for a person, until Ctrl-C."""
        enter = write_shell(self.directory, bench)
        user = " --user --preserve-credentials" if os.environ.get(netns.INSIDE) else ""
        self.say("\nIt keeps running until Ctrl-C. In another terminal:")
        self.plain(f"  nsenter --target {os.getpid()} --net{user} bash --rcfile {enter}")
        self.plain("and there:")
        for line in (
            "kubectl get canary -w                                     or -o wide, or describe canary payment",
            "kubectl canary status -w                                  the live table",
            "kubectl canary explain payment                            why it was rolled back",
            "kubectl set image deployment/checkout app=demo/app:v3     the next release",
            "kubectl set image deployment/search app=demo/app:v3-err2  words: err5 slow30 crash neverready oom …",
            "kubectl canary abort checkout --reason 'not today'        or promote, pause, resume, retry",
        ):
            self.plain(f"  {line}")
        while True:
            time.sleep(0.5)
            self._told()

    # ── words ────────────────────────────────────────────────────────────────────────────────────────────────

    def say(self, markup: str) -> None:
        self.console.print(markup, soft_wrap=True)

    def plain(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)

    def command(self, text: str) -> None:
        self.console.print(Text(f"$ {text}", style="bold"), soft_wrap=True)


def write_shell(directory: Path, bench: Bench) -> Path:
    """A bash rc file with kubectl, canaryd and `kubectl canary` on the PATH, and the admin's access to the cluster."""
    programs = directory / "bin"
    programs.mkdir(exist_ok=True)
    root, python = shlex.quote(str(ROOT)), shlex.quote(sys.executable)
    for name, entry in (("canaryd", "main"), ("kubectl-canary", "plugin")):
        body = f"import sys; sys.path.insert(0, sys.argv.pop(1)); from canaryd.__main__ import {entry}; {entry}()"
        (programs / name).write_text(f'#!/bin/sh\nexec {python} -c {shlex.quote(body)} {root} "$@"\n')
        (programs / name).chmod(0o755)
    config = directory / "canaryd.yaml"
    place = {"namespaces": [NAMESPACE], "kubeconfig": str(bench.kubeconfig()), "lease": {"namespace": "canaryd"}}
    config.write_text(yaml.safe_dump({"mode": "cluster", "cluster": place}))
    rc = directory / "shell"
    path = f"{programs}:{bench.tools['kubernetes']}"
    rc.write_text(
        f"export PATH={shlex.quote(path)}:$PATH KUBECONFIG={shlex.quote(str(bench.kubeconfig()))}\n"
        f"export CANARYD_CONFIG={shlex.quote(str(config))}\n"
        f"export NO_PROXY='*' no_proxy='*' PS1='(demo) \\w\\$ '\n"
    )
    return rc


def build_tools(console: Console) -> None:
    """Build the bench's programs when they are not there, and say how long that takes. Raises LabError."""
    try:
        tools.find()
    except tools.ToolsError as e:
        console.print(Text(f"demo-cluster: {e}"), soft_wrap=True)
        done = subprocess.run([sys.executable, str(ROOT / "tests/cluster/bench/tools.py")], check=False)
        if done.returncode:
            raise LabError("the bench's programs could not be built; what is missing is said above") from e
    if reason := obstacle():
        raise LabError(reason)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """Returns 0 only when all ended as they should and nothing was lost; 130 after Ctrl-C, 2 when it cannot be here."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="See the module.")
    parser.add_argument("--keep", action="store_true", help="leave it running at the end, to play with")
    parser.add_argument("--rate", type=int, default=360, help="requests per second in all (default: 360)")
    parser.add_argument("--interval", type=int, default=10, help="of the Canaries, in seconds (default: 10)")
    parser.add_argument("--record", type=Path, help="write the lines of `kubectl get canary -w` to this file")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    try:
        build_tools(console)
    except LabError as e:
        console.print(Text(f"demo-cluster: {e}"), soft_wrap=True)
        return 2
    if netns.needs_new_process():
        argv = netns.command([sys.executable, __file__, *arguments])
        os.execvp(argv[0], argv)
    netns.enter()
    signal.signal(signal.SIGTERM, _as_interrupt)
    directory = Path(tempfile.mkdtemp(prefix="canaryd-demo-"))
    code = 1
    try:
        code = Show(directory, options.keep, options.rate, options.interval, console, options.record).run()
    except KeyboardInterrupt:
        console.print("\ndemo-cluster: stopped; every process has ended")
        code = 130
    except (LabError, AssertionError, subprocess.SubprocessError) as e:
        console.print(Text(f"demo-cluster: {e}"), soft_wrap=True)
    finally:
        if code == 1:
            console.print(f"the logs are kept in {directory / 'logs'}", soft_wrap=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

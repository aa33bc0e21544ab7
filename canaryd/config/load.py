"""Files → settings and Canaries: which files, which documents in them, and whether the Canaries get along.

A Canary with a problem is not loaded; the others are. Two Canaries that fight over a name, a workload or a route are
both refused, since nobody can tell which one was meant.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from canaryd.config.notify import Channel, Slack
from canaryd.config.problems import problem_at, validated
from canaryd.config.settings import Settings
from canaryd.config.yamltext import Document, Node, read_documents
from canaryd.errors import ConfigError, Problem
from canaryd.policy import Canary, format_duration, said

MAX_BYTES = 1_000_000  # of one file
MAX_FILES = 2000

_CANARY_KEYS = frozenset({"apiVersion", "kind", "metadata", "spec"})


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that could be read, and everything that is wrong with the rest."""

    canaries: tuple[Canary, ...]  # valid ones, in the order of files and documents
    sources: Mapping[str, str]  # name of each of them -> its file, as named
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...] = ()  # worth knowing, not wrong
    refused: frozenset[str] = frozenset()  # names of Canaries that are there but have problems: broken, not deleted
    settings: Settings | None = None  # of a canaryd.yaml among the files, when it is valid
    files: tuple[str, ...] = ()  # every file that was read or should have been


@dataclass(frozen=True, slots=True)
class _Entry:
    """A valid Canary and where it stands."""

    canary: Canary
    file: str
    root: Node


@dataclass(slots=True)
class _Reading:
    """What has been collected so far."""

    entries: list[_Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)  # real path -> as named
    settings: Settings | None = None

    def done(self, settings: Settings | None) -> Loaded:
        order = {file: i for i, file in enumerate(self.files.values())}
        conflicts = _conflicts(self.entries, settings)
        good = [e for e in self.entries if id(e) not in conflicts]
        self.problems += [problem for found in conflicts.values() for problem in found]
        self.refused |= {e.canary.name for e in self.entries if id(e) in conflicts}
        return Loaded(
            canaries=tuple(e.canary for e in good),
            sources={e.canary.name: e.file for e in good},
            problems=tuple(dict.fromkeys(sorted(self.problems, key=lambda p: (order.get(p.file, -1), p.line)))),
            notes=tuple(dict.fromkeys([*self.notes, *(note for e in good for note in _notes(e))])),
            refused=frozenset(self.refused),
            settings=self.settings,
            files=tuple(self.files.values()),
        )


def load_settings(path: str | os.PathLike[str]) -> Settings:
    """canaryd.yaml. Raises ConfigError with every problem in it."""
    file = os.fspath(path)
    documents, problems = _documents(file)
    if len(documents) > 1:
        problems.append(Problem(file, documents[1].line, "", "a second document; canaryd.yaml is one document"))
    settings = None
    if documents:
        settings, wrong = validated(Settings, documents[0], file)
        problems += wrong
    if problems or settings is None:
        raise ConfigError(problems)
    return _from_here(settings, Path(file).parent)


def _from_here(settings: Settings, root: Path) -> Settings:
    """With the files of the metrics' server where they are, seen from the file that names them."""
    prometheus = settings.metrics.prometheus
    files = {"bearer_token_file": prometheus.bearer_token_file, "ca_file": prometheus.ca_file}
    joined = {key: str(root / name) for key, name in files.items() if name is not None}
    metrics = settings.metrics.model_copy(update={"prometheus": prometheus.model_copy(update=joined)})
    channels = tuple(_channel_from_here(channel, root) for channel in settings.notify.channels)
    notify = settings.notify.model_copy(update={"channels": channels})
    more = {name: getattr(settings, name).seen_from(root) for name in ("traces", "dashboard")} | {"notify": notify}
    return settings.model_copy(update={"metrics": metrics, **more})


def _channel_from_here(channel: Channel, root: Path) -> Channel:
    """The same for the files of secrets."""

    def joined(part: BaseModel | None) -> BaseModel | None:
        if part is None:
            return None
        files = {n: getattr(part, n) for n in type(part).model_fields if n.endswith("_file")}
        inner = {"buttons": joined(part.buttons)} if isinstance(part, Slack) else {}
        return part.model_copy(update={n: str(root / f) for n, f in files.items() if f is not None} | inner)

    return channel.model_copy(update={n: joined(getattr(channel, n)) for n in ("slack", "webhook", "apprise")})


def load_canaries(settings: Settings, root: str | os.PathLike[str]) -> Loaded:
    """All Canaries that the settings name; `root` is the directory of canaryd.yaml. Raises nothing."""
    reading = _Reading()
    _follow(settings, Path(root), reading)
    return reading.done(settings)


def check(paths: Iterable[str | os.PathLike[str]], settings: Settings | None = None) -> Loaded:
    """The given files, and the YAML files in the given directories, as `canaryd validate` does. Raises nothing.

    A document without apiVersion, kind, metadata and spec is taken for a canaryd.yaml; the Canaries it names are
    checked, too, once each. `settings`: those that the Canaries must get along with; else those found among the files.
    """
    reading = _Reading()
    for path in paths:
        name = os.fspath(path)
        files = _in_directory(name, reading) if os.path.isdir(name) else [name]
        for file in files:
            _read_file(file, reading, settings_too=True)
    return reading.done(settings or reading.settings)


# ── which files ──────────────────────────────────────────────────────────────────────────────────────────────


def _follow(settings: Settings, root: Path, reading: _Reading) -> None:
    """Read the Canaries that the settings name; in a cluster they are resources, and no file is one."""
    if settings.mode == "cluster":
        return
    for pattern in settings.canaries:
        place = str(root / pattern)
        if os.path.isdir(place):
            files = _in_directory(place, reading)
        elif glob.has_magic(pattern):
            files = sorted(file for file in glob.glob(place) if not os.path.isdir(file))
            if not files:
                reading.notes.append(Problem(place, 0, "", "no file matches"))
        else:
            files = [place]
        for file in files:
            _read_file(file, reading)


def _in_directory(directory: str, reading: _Reading) -> list[str]:
    """Its YAML files, hidden ones and subdirectories left out."""
    try:
        names = sorted(os.listdir(directory))
    except OSError as e:
        reading.problems.append(Problem(directory, 0, "", _why(e)))
        return []
    files = [os.path.join(directory, name) for name in names if not name.startswith(".")]
    files = [file for file in files if file.endswith((".yaml", ".yml")) and not os.path.isdir(file)]
    if not files:
        reading.notes.append(Problem(directory, 0, "", "no .yaml or .yml file in this directory"))
    return files


def _read_file(file: str, reading: _Reading, *, settings_too: bool = False) -> None:
    """Every document of a file, once, however often it is named."""
    real = os.path.realpath(file)
    if real in reading.files:
        return
    if len(reading.files) >= MAX_FILES:
        message = f"not read: more than {MAX_FILES} files"
        reading.problems.append(Problem(os.path.dirname(file), 0, "", message))
        return
    reading.files[real] = file
    documents, problems = _documents(file)
    reading.problems += problems
    for document in documents:
        if settings_too and _looks_like_settings(document):
            _read_settings(document, file, reading)
        else:
            _read_canary(document, file, reading)


def _read_canary(document: Document, file: str, reading: _Reading) -> None:
    canary, problems = validated(Canary, document, file)
    reading.problems += problems
    if canary is not None and document.root is not None:
        reading.entries.append(_Entry(canary, file, document.root))
    elif document.root is not None:
        metadata = document.root.value.get("metadata") if isinstance(document.root.value, dict) else None
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if isinstance(name, str):
            reading.refused.add(name)


def _read_settings(document: Document, file: str, reading: _Reading) -> None:
    settings, problems = validated(Settings, document, file)
    if reading.settings is not None:
        problems.append(Problem(file, document.line, "", "a second canaryd.yaml; a daemon has one"))
    reading.problems += problems
    if settings is not None and not problems:
        reading.settings = settings
        _follow(settings, Path(file).parent, reading)


def _looks_like_settings(document: Document) -> bool:
    return (
        document.root is not None
        and isinstance(document.root.value, dict)
        and not _CANARY_KEYS & set(document.root.value)
    )


# ── one file ─────────────────────────────────────────────────────────────────────────────────────────────────


def _documents(file: str) -> tuple[list[Document], list[Problem]]:
    """The documents of a file, or why there are none."""
    try:
        raw = _bytes(file)
    except (OSError, ValueError) as e:  # ValueError: a name that no file can have
        return [], [Problem(file, 0, "", _why(e))]
    if len(raw) > MAX_BYTES:
        return [], [Problem(file, 0, "", f"more than {MAX_BYTES // 1_000_000} MB; that is no configuration")]
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        return [], [Problem(file, line, "", f"byte 0x{raw[e.start]:02x} is not UTF-8; save the file as UTF-8")]
    documents = read_documents(text)
    empty = [] if documents else [Problem(file, 0, "", "this file is empty; it holds no document")]
    return documents, empty


def _bytes(file: str) -> bytes:
    """At most one byte more than a file may have. Never waits: a pipe is refused."""
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        if not stat.S_ISREG(mode):
            raise OSError("it is no plain file")
        with open(handle, "rb", closefd=False) as f:
            return f.read(MAX_BYTES + 1)
    finally:
        os.close(handle)


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file or directory"
    if isinstance(error, PermissionError):
        return "this user may not read it"
    if isinstance(error, IsADirectoryError):
        return "this is a directory, not a file"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot be read: {reason}"


# ── do the Canaries get along? ───────────────────────────────────────────────────────────────────────────────


def _conflicts(entries: Sequence[_Entry], settings: Settings | None) -> dict[int, list[Problem]]:
    """Problems of valid Canaries with each other and with the settings, by id of the entry."""
    found: dict[int, list[Problem]] = defaultdict(list)
    _claims_twice(entries, found)
    shortest = settings.metrics.shortest_interval if settings is not None else None
    for entry in entries:
        interval = entry.canary.spec.interval
        if shortest is not None and interval < shortest:
            message = (
                f"{format_duration(interval)} is less than two scrape intervals of Prometheus "
                f"(metrics.prometheus.scrapeInterval); use at least {format_duration(shortest)}"
            )
            found[id(entry)].append(problem_at(entry.root, entry.file, ("spec", "interval"), message))
        if settings is not None and settings.mode == "embedded":
            for path, message in _only_in_a_cluster(entry.canary):
                found[id(entry)].append(problem_at(entry.root, entry.file, path, message))
    return found


def _only_in_a_cluster(canary: Canary) -> Iterable[tuple[tuple[str, ...], str]]:
    """What the embedded mode cannot do, which nobody should find out from a rollout that does not move."""
    if canary.spec.workloads.deployment is not None:
        yield ("spec", "workloads", "deployment"), 'is looked after in a cluster; canaryd.yaml says "mode: embedded"'
    if canary.spec.prometheus is not None:
        yield ("spec", "prometheus"), 'is asked in a cluster only; canaryd.yaml says "mode: embedded"'


def _claims_twice(entries: Sequence[_Entry], found: dict[int, list[Problem]]) -> None:
    """What only one Canary can have; both places are named, each at its own line."""
    owners: dict[tuple[str, ...], list[tuple[_Entry, tuple[str | int, ...]]]] = defaultdict(list)
    for entry in entries:
        for claim, path in _claims(entry.canary):
            owners[claim].append((entry, path))
    told: set[tuple[str, int, int]] = set()  # whoever shares a workload need not hear of its cluster, too
    for claim, places in sorted(owners.items(), key=lambda item: _ORDER.index(item[0][0])):
        for entry, path in places:
            if not (rivals := [(e, p) for e, p in places if e is not entry]):
                continue
            other, other_path = rivals[0]
            pair = (id(entry), id(other))
            if claim[0] == "cluster" and ("workload", *pair) in told:
                continue
            told.add((claim[0], *pair))
            there = problem_at(other.root, other.file, other_path, "")
            message = f"{_claimed(claim)} is also used in {there.file}:{there.line}; {_REMEDIES[claim[0]]}"
            found[id(entry)].append(problem_at(entry.root, entry.file, path, message))


_REMEDIES = {
    "name": "names must be unique, whatever the namespace",
    "workload": "a workload belongs to one Canary",
    "cluster": "a cluster in a route file belongs to one Canary",
}


_ORDER = tuple(_REMEDIES)


def _claims(canary: Canary) -> Iterable[tuple[tuple[str, ...], tuple[str | int, ...]]]:
    """What this Canary needs for itself, and where it says so."""
    yield ("name", canary.name), ("metadata", "name")
    route, pools = canary.spec.route.envoy_file, canary.spec.workloads.pools
    if route is None or pools is None:
        return
    file = os.path.realpath(route.path)
    for i, pool in enumerate(pools):
        at: tuple[str | int, ...] = ("spec", "workloads", "pools", i, "name")
        yield ("workload", canary.metadata.namespace, pool.name), at
        cluster = route.clusters.get(pool.name)
        named = ("spec", "route", "envoyFile", "clusters", pool.name) if cluster is not None else at
        yield ("cluster", file, cluster if cluster is not None else pool.name), named


def _claimed(claim: tuple[str, ...]) -> str:
    match claim:
        case ("workload", namespace, name):
            return f"the workload {said(name)} of namespace {said(namespace)}"
        case ("cluster", _, name):
            return f"the cluster {said(name)} of the same route file"
        case _:
            return f"the name {said(claim[1])}"


def _notes(entry: _Entry) -> Iterable[Problem]:
    for i, metric in enumerate(entry.canary.spec.metrics):
        if metric.kind == "gauge":
            message = 'metrics of kind "gauge" are compared pod by pod; they can hold a rollout, not roll it back'
            yield problem_at(entry.root, entry.file, ("spec", "metrics", i, "kind"), message)

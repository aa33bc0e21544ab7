"""The Dockerfile as text: what an operator's security review would ask of it."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from image_recipe import ROOT, Stage, copy_of, recipe, stages

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
BUILD, FINAL = recipe()


def lint(hadolint: str, text: str) -> subprocess.CompletedProcess[str]:
    """hadolint's answer about a Dockerfile's text, by the repository's own rules."""
    command = [hadolint, "--config", str(ROOT / ".hadolint.yaml"), "--no-color", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)


def test_the_linter_has_nothing_to_say(hadolint: str) -> None:
    answer = lint(hadolint, DOCKERFILE)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.strip() == ""


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        pytest.param("DL3007", FINAL.base, "python:latest", id="a-base-that-moves"),
        pytest.param("DL3002", "USER 10001:10001", "USER root", id="runs-as-root"),
        pytest.param("DL3025", 'ENTRYPOINT ["canaryd"]', "ENTRYPOINT canaryd", id="an-entrypoint-behind-a-shell"),
        pytest.param("DL3020", "COPY canaryd canaryd", "ADD canaryd canaryd", id="add-instead-of-copy"),
        pytest.param("DL3000", "WORKDIR /src", "WORKDIR src", id="a-folder-that-depends-on-the-last-one"),
        pytest.param("DL3049", "image.licenses", "image.vendor", id="a-label-missing"),
    ],
)
def test_the_linter_catches_a_planted_mistake(hadolint: str, rule: str, good: str, bad: str) -> None:
    assert good in DOCKERFILE
    answer = lint(hadolint, DOCKERFILE.replace(good, bad))
    assert answer.returncode != 0
    assert rule in answer.stdout


@pytest.mark.parametrize("stage", [BUILD, FINAL], ids=["build", "final"])
def test_the_base_is_one_exact_version(stage: Stage) -> None:
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", stage.base), stage.base
    assert stage.base == BUILD.base  # the environment made in one stage runs on the Python of the other


def test_it_runs_as_a_number_that_is_not_root() -> None:
    user, group = FINAL.last("USER").text.split(":")
    assert int(user) >= 1000  # a number: Kubernetes' runAsNonRoot cannot check a name
    assert int(group) >= 1000
    names = [instruction.name for instruction in FINAL.instructions]
    assert "RUN" not in names[names.index("USER") :]


def test_no_shell_stands_between_a_signal_and_the_daemon() -> None:
    assert FINAL.last("ENTRYPOINT").argv == ["canaryd"]
    assert FINAL.last("CMD").argv[0] == "run"
    assert FINAL.health_command[:2] == ["canaryd", "health"]


def test_state_is_the_only_place_it_writes_to() -> None:
    (volume,) = FINAL.all("VOLUME")
    environment = FINAL.environment
    assert {volume.text, environment["HOME"], environment["TMPDIR"], FINAL.last("WORKDIR").text} == {"/var/lib/canaryd"}
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_the_final_image_has_no_compiler_and_no_installer() -> None:
    ran = " ".join(instruction.text for instruction in FINAL.all("RUN"))
    assert not re.search(r"\b(apt|apt-get|gcc|g\+\+|make|curl|wget|pip install)\b", ran)
    assert re.search(r"pip uninstall .*\bpip\b", ran)


def test_dependencies_come_from_the_hashed_lock_alone() -> None:
    installs = [part for run in BUILD.all("RUN") for part in run.text.split("&&") if " install " in part]
    assert len(installs) == 3
    assert BUILD.environment["PIP_NO_CACHE_DIR"] == "1"
    for install in installs:
        locked = "--require-hashes --" in install and "requirements/" in install
        assert locked or "--no-index" in install, install


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out; the last line that matches counts."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        bare = pattern.lstrip("!").removeprefix("**/")
        if fnmatch.fnmatch(path, bare) or path.startswith(bare + "/") or bare in Path(path).parts:
            verdict = not pattern.startswith("!")
    return verdict


def test_everything_it_copies_exists_and_reaches_the_builder() -> None:
    copies = [copy_of(instruction) for stage in (BUILD, FINAL) for instruction in stage.all("COPY")]
    sources = [source for copy in copies if not copy.stage for source in copy.sources]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    assert all(copy.stage in ("", BUILD.alias) for copy in copies)


@pytest.mark.parametrize("path", [".git", ".venv", "tests", ".cache", "config", "canaryd/__pycache__"])
def test_nothing_else_reaches_the_builder(path: str) -> None:
    assert ignored(path)


def test_the_label_tells_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    labels = FINAL.last("LABEL").pairs
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.description"] == project["description"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]


def test_the_port_it_exposes_is_the_port_it_is_asked_at() -> None:
    assert f":{FINAL.last('EXPOSE').text}/" in FINAL.health_command[-1]


def test_an_instruction_before_the_first_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="before FROM"):
        stages("RUN true\nFROM scratch\n")

"""The Dockerfile as data: stages of instructions, so that tests can ask about them and run them.

Knows as much of the format as this repository's Dockerfile uses: no build arguments, no here-documents.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name in capitals, and the rest with continued lines joined."""

    name: str
    text: str

    @property
    def argv(self) -> list[str]:
        """The words of an exec-form instruction. Raises ValueError when it is in shell form."""
        words = json.loads(self.text)
        if not isinstance(words, list):
            raise ValueError(f"{self.name} is not in exec form: {self.text}")
        return [str(word) for word in words]

    @property
    def pairs(self) -> dict[str, str]:
        """The KEY=value pairs of ENV or LABEL, quotes removed."""
        return dict(word.split("=", 1) for word in shlex.split(self.text))


@dataclass(frozen=True)
class Copy:
    """One COPY: from which stage ("" is the repository), what, whereto."""

    stage: str
    sources: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Stage:
    """From one FROM to the next."""

    base: str
    alias: str
    instructions: tuple[Instruction, ...]

    def all(self, name: str) -> list[Instruction]:
        """Every instruction of that name, in order."""
        return [instruction for instruction in self.instructions if instruction.name == name]

    def last(self, name: str) -> Instruction:
        """The one that counts. Raises LookupError when there is none."""
        found = self.all(name)
        if not found:
            raise LookupError(f"the stage from {self.base} has no {name}")
        return found[-1]

    @property
    def environment(self) -> dict[str, str]:
        """What the stage's ENV lines set."""
        return {key: value for line in self.all("ENV") for key, value in line.pairs.items()}

    @property
    def health_command(self) -> list[str]:
        """The words of HEALTHCHECK … CMD [...]."""
        return Instruction("CMD", self.last("HEALTHCHECK").text.partition("CMD ")[2]).argv


def copy_of(instruction: Instruction) -> Copy:
    """A COPY instruction taken apart."""
    words = instruction.text.split()
    flags = [word for word in words if word.startswith("--")]
    paths = [word for word in words if not word.startswith("--")]
    stage = next((flag.removeprefix("--from=") for flag in flags if flag.startswith("--from=")), "")
    return Copy(stage=stage, sources=tuple(paths[:-1]), target=paths[-1])


def stages(text: str) -> list[Stage]:
    """The stages in order. Raises ValueError when an instruction stands before the first FROM."""
    found: list[Stage] = []
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, rest = line.strip().partition(" ")
        instruction = Instruction(name.upper(), " ".join(rest.split()))
        if instruction.name == "FROM":
            base, _, alias = instruction.text.partition(" AS ")
            found.append(Stage(base, alias, ()))
        elif not found:
            raise ValueError(f"{line!r} stands before FROM")
        else:
            stage = found[-1]
            found[-1] = Stage(stage.base, stage.alias, (*stage.instructions, instruction))
    return found


def recipe() -> tuple[Stage, Stage]:
    """The repository's own Dockerfile: the stage that builds and the stage that runs."""
    build, final = stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    return build, final

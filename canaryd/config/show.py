"""A Canary or the settings as YAML text with every default written out. Pure."""

from __future__ import annotations

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from canaryd.config.settings import Settings
from canaryd.policy import Canary, dump_canary, format_duration

_PLAIN = re.compile(r"[A-Za-z/]([A-Za-z0-9 _./%+-]*[A-Za-z0-9%])?|[0-9]+(\.[0-9]+)?(%|pp|ms|s|m|h|d)")
# read as something else than text, somewhere
_MISREAD = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null", "none", "nan", "inf"})


def show(document: Canary | Settings) -> str:
    """YAML that is read back as the same document, by readers of YAML 1.1 (kubectl) as well."""
    if isinstance(document, Settings):
        return _yaml(document.model_dump(mode="json", by_alias=True))
    spec = document.spec
    comment = ""
    if any(step.bake is None for step in spec.steps):
        comment += f"# a step without bake bakes for 4 intervals: {format_duration(4 * spec.interval)}\n"
    if any(step.timeout is None for step in spec.steps):
        comment += f"# a step without timeout has maxHold: {format_duration(spec.max_hold)}\n"
    return comment + _yaml(dump_canary(document))


def _yaml(value: Any) -> str:
    yaml = YAML()
    yaml.width = 1_000_000  # never fold a line
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(_quoted(value), out)
    return out.getvalue()


def _quoted(value: Any) -> Any:
    """The same with every text in quotes that any reader could take for something else."""
    if isinstance(value, dict):
        return {_quoted(key): _quoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_quoted(item) for item in value]
    if isinstance(value, str) and (not _PLAIN.fullmatch(value) or value.lower() in _MISREAD):
        return DoubleQuotedScalarString(value)
    return value

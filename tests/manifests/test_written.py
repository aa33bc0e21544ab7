"""What scripts/monitoring.py and scripts/rendered.py write is what is committed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from shipped.render import ROOT


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "home"), [("monitoring", ROOT / "manifests"), ("rendered", ROOT)])
def test_the_committed_files_are_what_would_be_written(name: str, home: Path) -> None:
    for file, text in script(name).files().items():
        assert (home / file).read_text(encoding="utf-8") == text, f"{file}: run scripts/{name}.py"

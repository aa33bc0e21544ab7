"""One closing line for `make test`, which runs pytest many times: what passed, failed and was skipped in all.

Reads the JUnit files the runs have written; runs nothing and judges nothing (make stopped at a failure).
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def add_up(reports: list[Path]) -> tuple[int, int, int, float]:
    """Passed, failed (errors included), skipped, seconds, over all reports. Raises OSError for a missing one."""
    tests = failed = skipped = 0
    seconds = 0.0
    for report in reports:
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            tests += int(suite.attrib["tests"])
            failed += int(suite.attrib["failures"]) + int(suite.attrib["errors"])
            skipped += int(suite.attrib["skipped"])
            seconds += float(suite.attrib["time"])
    return tests - failed - skipped, failed, skipped, seconds


def main(arguments: list[str]) -> int:
    """Exit status for make."""
    passed, failed, skipped, seconds = add_up([Path(argument) for argument in arguments])
    print(f"make test: all checks held; tests took {seconds:.0f} s")
    print(f"total: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

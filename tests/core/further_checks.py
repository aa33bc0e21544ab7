"""A module of checks that plugs into the doctor."""

from collections.abc import Iterator

from canaryd.doctor.findings import Check, Finding, warning
from canaryd.doctor.further import Site


def _look(site: Site) -> Iterator[Finding]:
    for subject in site.subjects:
        yield warning("it rains", "people get wet", "stay inside", subject.about)


CHECKS = (Check("weather", _look),)

"""Rules for the tests of the core: no time limit for one example, since a busy machine is not a defect.

Being here also puts this folder on the path, so that the tests below it can import `world` and `service`.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("core", deadline=None)
settings.load_profile("core")

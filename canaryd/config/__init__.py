"""Files → settings and Canaries, typed and strict; everything wrong is said at once, with file, line and key.

A broken document never hides the valid ones beside it, and never becomes a traceback. Never changes a file.
"""

from __future__ import annotations

from canaryd.config.load import Loaded, check, load_canaries, load_settings
from canaryd.config.settings import METRIC_SOURCES, Settings
from canaryd.config.show import show

__all__ = ["METRIC_SOURCES", "Loaded", "Settings", "check", "load_canaries", "load_settings", "show"]

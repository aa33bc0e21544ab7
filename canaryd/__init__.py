"""Canary analysis and progressive delivery that says how sure it is."""

__version__ = "0.1.0"

"""The report of one rollout: a story in, a page, a JSON document or a text for a ticket out. Pure.

It needs nothing but the records, so that it says the same wherever and whenever it is made. The page is whole in one
file: no script, nothing loaded, its pictures in it; it prints as it reads. Its size is bounded, whatever the rollout.
"""

from canaryd.report.machine import FORMAT, document
from canaryd.report.page import html
from canaryd.report.text import markdown

__all__ = ["FORMAT", "document", "html", "markdown"]

"""Other words for the sentence of a decision, where a channel has templates; the usual ones where those fail. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from canaryd.model import Record
from canaryd.notices.notice import Notice, plain


@dataclass(frozen=True, slots=True)
class Words:
    """Templates by the kind of decision; "default" is for all that have none."""

    templates: Mapping[str, str] = field(default_factory=dict)

    def said(self, record: Record, told: Notice, finish: Callable[[str], str] = str) -> str:
        """The text for this decision; "" where there is no template. One that fails gives the usual sentence, and says
        that it failed. `finish` makes values safe where they are shown.
        """
        template = self.templates.get(told.kind, self.templates.get("default"))
        if template is None:
            return ""
        from canaryd.notices.templates import TemplateError, render  # Jinja2 is loaded only where there are templates

        facts = {
            **{key: plain(value) if isinstance(value, str) else value for key, value in record.body.items()},
            "id": told.id,
            "key": told.canary,
            "name": told.name,
            "kind": told.kind,
            "sentence": told.sentence,
            "harmed": told.harmed,
            "cleared": list(told.cleared),
            "late": told.late,
            "page": told.page,
            "report": told.report,
        }
        try:
            return render(template, facts, finish)
        except TemplateError as e:
            return f"{finish(told.sentence)}\n({finish(plain(f'the template for {told.kind} failed: {e}', 300))})"

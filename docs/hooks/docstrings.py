"""Griffe: docstrings are plain text that is read as Markdown; what Markdown would take for more is escaped."""

import re
from typing import Any

import griffe


class Plain(griffe.Extension):
    """Escapes `][`, in which formulas such as [dq q][k dk] would be taken for a reference."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Escape it in an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"\](\s*)\[", r"]\1\\[", obj.docstring.value)

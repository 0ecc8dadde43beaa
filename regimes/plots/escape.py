"""Text from data in figures, Markdown and HTML: shown as it is, never taken as markup, mathematics or script."""

from __future__ import annotations

import json
import re
from typing import Any

from regimes.errors import printable

# A character that may begin markup: any of these, an underscore at the edge of a word, the colon or point of a link.
_MARKUP = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def markdown_text(text: object) -> str:
    """Return a text for a line or a table cell of Markdown."""
    return _MARKUP.sub(lambda found: "\\" + found[0], printable(text))


def markdown_code(text: object) -> str:
    """Return a text as a code span of Markdown."""
    text = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def figure_text(text: object) -> str:
    """Return a text for a figure, where a pair of dollar signs would enclose mathematics."""
    return printable(text).replace("$", r"\$")


class ScriptEncoder(json.JSONEncoder):
    """JSON encoder for JSON within a ``<script>`` element, which a ``</script>`` in a string would end."""

    def encode(self, o: Any) -> str:
        """Return the JSON of an object, with ``<`` as an escape sequence."""
        return super().encode(o).replace("<", "\\u003c")

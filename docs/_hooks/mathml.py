"""Turn the formulas of a page into MathML while the site is built.

Browsers draw MathML by themselves, so pages need no script and no network.
"""

import html
import re

from latex2mathml.converter import convert


_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?P<body>.*?)</(?P=tag)>', re.DOTALL
)


def _to_mathml(match: re.Match[str]) -> str:
    # The body is \( ... \) in a line of text and \[ ... \] on lines of its own.
    latex = html.unescape(match["body"]).strip()
    display = "block" if latex.startswith(r"\[") else "inline"
    return convert(latex[2:-2].strip(), display=display)


def on_page_content(content: str, **_: object) -> str:
    """Called by mkdocs for each page."""
    return _FORMULA.sub(_to_mathml, content)

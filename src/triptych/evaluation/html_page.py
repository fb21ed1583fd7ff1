"""HTML pages from jinja2 templates: single files without network access or scripts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from triptych.utils.images import data_url

TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, folder: Path | None = None, **values: Any) -> str:
    """Render a template that extends `base.html` and its style sheet.

    Args:
        template: file name in `templates/` or in `folder`.
        folder: additional template folder; its templates may extend and import those here.
        values: variables of the template; their text is escaped.
    """
    return _environment(folder).get_template(template).render(values)


@cache
def _environment(folder: Path | None) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATES] if folder is None else [folder, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_url"] = data_url
    return environment

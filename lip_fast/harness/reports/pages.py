"""A report as Markdown, and as one HTML file that needs no other."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from lip_fast.cli.table import markdown
from lip_fast.harness.reports.tables import Table

__all__ = ["as_html", "as_markdown", "table_as_markdown"]

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p { max-width: 60rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
th.name, td.name { text-align: left; }
tbody tr:nth-child(even) { background: #f6f6f6; }
img { max-width: 100%; height: auto; }
footer { margin-top: 3rem; color: #666; font-size: .85rem; }
</style>
<h1>{{ title }}</h1>
{% for line in lead %}<p>{{ line }}</p>
{% endfor %}
{%- for table in tables %}
<h2>{{ table.title }}</h2>
<p>{{ table.note }}</p>
<div class="wide"><table>
<thead><tr>
{%- for cell in table.header %}<th{{ loop.index | name(table) }}>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr>{% for cell in row %}<td{{ loop.index | name(table) }}>{{ cell | bold }}</td>
{%- endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{%- endfor %}
{%- for caption, image in figures %}
<h2>{{ caption }}</h2>
<img alt="{{ caption }}" src="data:image/png;base64,{{ image }}">
{%- endfor %}
<footer>{{ foot }}</footer>
</html>
"""


def table_as_markdown(table: Table) -> str:
    """The table alone, in GitHub's Markdown."""
    return markdown([table.header, *table.rows], names=table.names)


def as_markdown(
    title: str, lead: Sequence[str], tables: Sequence[Table], figures: Mapping[str, str], foot: str
) -> str:
    """The report; figures are files beside it.

    Args:
        title: of the report.
        lead: paragraphs before the first table.
        tables: in their order.
        figures: captions by file name.
        foot: the last line.
    """
    parts = [f"# {title}", *lead]
    for table in tables:
        parts += [f"## {table.title}", table.note, table_as_markdown(table)]
    for name, caption in figures.items():
        parts += [f"## {caption}", f"![{caption}]({name})"]
    return "\n\n".join([*parts, foot]) + "\n"


def as_html(
    title: str, lead: Sequence[str], tables: Sequence[Table], figures: Mapping[Path, str], foot: str
) -> str:
    """The report in one file, with its figures inside.

    Args:
        title: of the report.
        lead: paragraphs before the first table.
        tables: in their order.
        figures: captions by PNG file.
        foot: the last line.
    """
    environment = jinja2.Environment(autoescape=True)
    environment.filters["bold"] = _bold
    environment.filters["name"] = _name
    images = [
        (caption, base64.b64encode(path.read_bytes()).decode("ascii")) for path, caption in figures.items()
    ]
    return environment.from_string(_PAGE).render(
        title=title, lead=lead, tables=tables, figures=images, foot=foot
    )


def _name(column: int, table: Table) -> Markup:
    """The attribute of a cell in a column with names; empty for a column of numbers."""
    return Markup(' class="name"') if column <= table.names else Markup()


def _bold(cell: str) -> Markup:
    """Markdown's bold as HTML; all else is escaped."""
    if match := re.fullmatch(r"\*\*(.*)\*\*", cell):
        return Markup("<b>{}</b>").format(match[1])
    return Markup("{}").format(cell)

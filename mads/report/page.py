"""The page around the sections: one self-contained HTML document, without scripts, readable in light and dark."""

from __future__ import annotations

from collections.abc import Sequence

from mads.report.scale import escape

_LIGHT = {
    "bg": "#ffffff",
    "panel": "#f6f7f9",
    "text": "#1c2127",
    "muted": "#59636e",
    "rule": "#d5dae0",
    "grid": "#e6e9ed",
    "c0": "#0063a6",
    "c1": "#c04a00",
    "c2": "#007a59",
    "c3": "#a0417f",
    "c4": "#8a6400",
    "c5": "#3d4f8f",
    "c6": "#5a5f66",
    "up": "0,99,166",
    "down": "192,74,0",
}
_DARK = {
    "bg": "#14181d",
    "panel": "#1c2229",
    "text": "#e4e8ec",
    "muted": "#9aa5b1",
    "rule": "#3a434d",
    "grid": "#28303a",
    "c0": "#62b4ee",
    "c1": "#ff9455",
    "c2": "#3fcba3",
    "c3": "#e79acb",
    "c4": "#e3bb4b",
    "c5": "#a5b4f5",
    "c6": "#b0b7bf",
    "up": "98,180,238",
    "down": "255,148,85",
}


def _variables(palette: dict[str, str]) -> str:
    return ";".join(f"--{k}:{v}" for k, v in palette.items())


_SERIES = "".join(
    f".line.s{i},.leader.s{i},.error.s{i}{{stroke:var(--c{i})}}.mark.s{i},.label.s{i},.fill.s{i},.band.s{i}{{fill:var(--c{i})}}"
    for i in range(7)
)
_STYLE = f"""
:root{{color-scheme:light dark;{_variables(_LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables(_DARK)}}}}}
@media print{{:root{{{_variables(_LIGHT)}}}details{{break-inside:avoid}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--bg);color:var(--text);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,
"DejaVu Sans",sans-serif;-webkit-text-size-adjust:100%}}
main{{max-width:1080px;margin:0 auto;padding:28px 20px 64px}}
h1{{font-size:1.75rem;line-height:1.25;margin:0 0 .2em;overflow-wrap:anywhere}}
h2{{font-size:1.25rem;margin:2.6em 0 .3em;padding-top:.9em;border-top:1px solid var(--rule)}}
h3{{font-size:1rem;margin:1.6em 0 .2em}}
p{{margin:.4em 0 .8em;max-width:72ch;overflow-wrap:anywhere}} .lead,.note,figcaption{{color:var(--muted)}} .lead{{max-width:none}}
figcaption{{font-size:.85rem;line-height:1.45;margin-top:4px;max-width:64ch}}
nav{{font-size:.9rem;margin:1em 0 0}} nav a{{color:var(--c0);margin-right:1.1em;white-space:nowrap;line-height:2}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:1.4em 0;padding:0}}
.tiles div{{background:var(--panel);border-radius:8px;padding:12px 14px}}
.tiles dt{{font-size:.82rem;color:var(--muted)}}
.tiles dd{{margin:0;font-size:1.45rem;font-variant-numeric:tabular-nums;line-height:1.3}}
.tiles small{{display:block;font-size:.8rem;color:var(--muted)}}
.pair,.multiples{{display:grid;gap:22px 28px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));align-items:start}}
.multiples{{gap:16px 18px;grid-template-columns:repeat(auto-fill,minmax(min(100%,225px),1fr))}}
figure{{margin:12px 0 6px;min-width:0}} figure h3{{margin:0 0 4px;overflow-wrap:anywhere}} .multiples h3{{font-size:.9rem}}
.chart{{display:block;width:100%;max-width:600px;height:auto}} .chart.small{{max-width:330px}}
.chart text{{font-size:12px;fill:var(--text);font-variant-numeric:tabular-nums}}
.chart .tick,.chart .axis{{fill:var(--muted)}} .chart text.tiny{{font-size:10.5px}}
.grid{{stroke:var(--grid)}} .rule{{stroke:var(--rule)}} .zero{{stroke:var(--muted)}}
.line{{fill:none;stroke-width:2;stroke-linejoin:round}} .leader{{stroke-width:.8;opacity:.55}} .error{{stroke-width:2}}
.band{{opacity:.16}}
.mark{{stroke:var(--bg);stroke-width:.7}} .outline{{fill:none;stroke:var(--muted)}} .key{{vertical-align:-1px;margin-right:5px}}
{_SERIES}.chart text.label{{font-weight:600}}
.chart text.name{{fill:var(--text)}}
.keys{{display:flex;flex-wrap:wrap;gap:2px 18px;font-size:.88rem;margin:.6em 0;padding:0;list-style:none}}
.scroll{{overflow-x:auto;margin:.8em 0}}
table{{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}}
ul{{padding-left:1.2em;max-width:80ch}}
th,td{{padding:4px 9px;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}}
th{{font-weight:600;color:var(--muted);vertical-align:bottom}} th:first-child,td:first-child{{text-align:left;padding-left:0}}
thead th{{border-bottom:1px solid var(--rule);white-space:normal}}
tbody th{{font-weight:400;vertical-align:top;color:var(--text)}}
th.text,td.text{{text-align:left;white-space:normal}}
.heat td{{padding:4px 9px}} .heat td.up{{background:rgba(var(--up),var(--a))}}
.heat td.down{{background:rgba(var(--down),var(--a))}}
details{{margin:.8em 0}} summary{{cursor:pointer;color:var(--c0)}}
pre{{background:var(--panel);border-radius:8px;padding:12px 14px;overflow:auto;font-size:.8rem;line-height:1.45;max-height:34em}}
@media (max-width:520px){{main{{padding:18px 14px 48px}}h1{{font-size:1.4rem}}
.chart text{{font-size:13.5px}}.chart text.tiny{{font-size:12px}}
.chart.small{{max-width:300px}}.chart.small text{{font-size:11px}}.tiles{{grid-template-columns:repeat(2,1fr)}}}}
"""


def figure(title: str, drawing: str, caption: str = "") -> str:
    """A drawing under its title; title and caption are plain text."""
    foot = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(title)}</h3>{drawing}{foot}</figure>"


def paragraph(text: str, css: str = "") -> str:
    """An HTML paragraph of plain text."""
    return f'<p class="{css}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], css: str = "") -> str:
    """A table of plain text cells; the first column names the row."""
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    cells = ["".join(f"<td>{escape(c)}</td>" for c in row[1:]) for row in rows]
    body = "".join(f'<tr><th scope="row">{escape(row[0])}</th>{rest}</tr>' for row, rest in zip(rows, cells))
    return f'<div class="scroll"><table class="{css}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def section(identity: str, title: str, *content: str) -> str:
    """An HTML section with its heading."""
    return f'<section id="{identity}"><h2>{escape(title)}</h2>{"".join(content)}</section>'


def document(title: str, headline: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole page; sections are (id, title, content), ids and markup our own."""
    links = " ".join(f'<a href="#{identity}">{escape(name)}</a>' for identity, name, _ in sections)
    body = "".join(section(identity, name, content) for identity, name, content in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="referrer" content="no-referrer">'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head>\n'
        f"<body><main>{headline}<nav>{links}</nav>\n{body}</main></body></html>\n"
    )

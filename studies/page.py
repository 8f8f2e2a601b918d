"""A study's table (Markdown) and plot (SVG)."""

from html import escape

from studies.plan import Study
from studies.results import Entry, tie, told

Entries = dict[str, dict[str, Entry]]  # by cell, by metric
WIDTH, ROW, LEFT, RIGHT, TOP = 720, 26, 240, 30, 30
COLORS = ("#1b6ca8", "#c8553d", "#5b8c5a", "#7d5ba6")


def table(study: Study, entries: Entries) -> str:
    """Markdown; a tie is with the reference cell, the lowest mean is bold."""
    lines = ["| | " + " | ".join(study.metrics) + " |", "|---|" + "---|" * len(study.metrics)]
    means = {m: [e[m].mean for e in entries.values()] for m in study.metrics}
    best = {m: min((v for v in values if v is not None), default=None) for m, values in means.items()}
    for cell in study.cells:
        row = []
        for metric in study.metrics:
            e = entries[cell.name][metric]
            tied = cell.name != study.reference and tie(e, entries[study.reference][metric])
            row.append(told(e, best=e.mean is not None and e.mean == best[metric], tied=tied))
        lines.append(f"| {cell.label} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def page(study: Study, entries: Entries, codes: list[str]) -> str:
    """Title, claim, table, how to read it, what it says; `codes` are the commits whose code ran."""
    note = "Mean +- standard deviation over seeds (n). `tie`: no further from the reference row than the pooled sd."
    untuned = "" if study.tuned else "\nConstants as shipped; nothing was tuned for this study.\n"
    reading = f"\nReading: {study.reading}\n" if study.reading else ""
    code = f"\n`python -m studies {study.name}`, code of {', '.join(codes)}.\n" if codes else ""
    plot = f"\n![{study.title}]({study.name}.svg)\n"
    body = f"# {study.title}\n\nClaim of the paper: {study.claim}.\n\n{table(study, entries)}\n{note}\n"
    return body + untuned + reading + code + plot


def svg(study: Study, entries: Entries) -> str:
    """A row per cell, a point with its error bar per metric, on one common axis from zero."""
    ends = [e.mean + (e.sd or 0) for cell in entries.values() for e in cell.values() if e.mean is not None]
    top = max(ends, default=1.0) * 1.05 or 1.0
    height = TOP + ROW * len(study.cells) + 20 + 18 * len(study.metrics)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')

    def x(value: float) -> float:
        return round(LEFT + max(value, 0.0) / top * (WIDTH - LEFT - RIGHT), 1)

    for i in range(5):
        parts.append(_text(x(top * i / 4), TOP - 12, f"{top * i / 4:.2f}", "middle"))
    for row, cell in enumerate(study.cells):
        y = TOP + ROW * row + ROW / 2
        parts.append(_text(LEFT - 10, y + 4, cell.label, "end"))
        for k, metric in enumerate(study.metrics):
            e, color = entries[cell.name][metric], COLORS[k % len(COLORS)]
            at = y + 4 * (k - (len(study.metrics) - 1) / 2)
            if e.mean is not None:
                low, high = x(e.mean - (e.sd or 0)), x(e.mean + (e.sd or 0))
                parts.append(f'<path d="M{low} {at}H{high}" stroke="{color}"/>')
                parts.append(f'<circle cx="{x(e.mean)}" cy="{at}" r="3" fill="{color}"/>')
    for k, metric in enumerate(study.metrics):
        y = TOP + ROW * len(study.cells) + 20 + 18 * k
        parts.append(f'<circle cx="{LEFT}" cy="{y - 4}" r="3" fill="{COLORS[k % len(COLORS)]}"/>')
        parts.append(_text(LEFT + 10, y, metric, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" font-size="12" text-anchor="{anchor}">{escape(text)}</text>'

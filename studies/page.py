"""A study's page in Markdown: its table, and how to read it."""

from typing import Any

from studies.charts import Entries
from studies.plan import Study
from studies.results import as_text, tie


def table(study: Study, entries: Entries) -> str:
    """Markdown; a tie is with the reference cell, the lowest mean of cells that all seeds have is bold."""
    lines = ["| | " + " | ".join(study.metrics) + " |", "|---|" + "---|" * len(study.metrics)]
    full = {m: max(e[m].n for e in entries.values()) for m in study.metrics}
    means = {m: [e[m].mean for e in entries.values() if e[m].n == full[m]] for m in study.metrics}
    best = {m: min((v for v in values if v is not None), default=None) for m, values in means.items()}
    for cell in study.cells:
        row = []
        for metric in study.metrics:
            e = entries[cell.name][metric]
            tied = cell.name != study.reference and tie(e, entries[study.reference][metric])
            best_here = e.mean is not None and e.n == full[metric] and e.mean == best[metric]
            row.append(as_text(e, best=best_here, tied=tied))
        lines.append(f"| {cell.label} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def page(study: Study, entries: Entries, made: str) -> str:
    """Title, claim, table, how to read it, what it says; `made`: of `provenance`."""
    claim = f"Claim of the paper: {study.claim}.\n\n" if study.claim else ""
    note = "Mean +- standard deviation over seeds (n). `tie`: no further from the reference row than the pooled sd."
    note += " `lower in`: seeds, each with one teacher for all, in which the cell is below the reference row."
    if study.grid:
        note = (
            f"Trials on seed {study.seeds[0]}, which no table uses; the choice is in studies/tuned/{study.name}.yaml."
        )
    elif study.tuned:
        note += f"\n\nEach method as `python -m studies {study.tuned}` chose it, within one budget of trials."
    else:
        note += "\n\nConstants as shipped; nothing was tuned for this study."
    reading = f"\nReading: {study.reading}\n" if study.reading else ""
    plot = f"\n![{study.title}]({study.name}.svg)\n"
    ran = f"\n`python -m studies {study.name}`{made}.\n"
    return f"# {study.title}\n\n{claim}{table(study, entries)}\n{note}\n{reading}{ran}{plot}"


def provenance(records: dict[str, dict[str, Any]]) -> str:
    """Commits and machines of some records, and what they cost."""
    if not records:
        return ", not run yet"
    codes = sorted({str(r["code"])[:7] for r in records.values()})
    machines = sorted({r["machine"] for r in records.values() if "machine" in r})
    hours = sum(r.get("cpu_s", 0.0) for r in records.values() if "of" not in r) / 3600
    spent = f"; {hours:.1f} CPU-hours beside what runs share (features, teachers, students)" if hours else ""
    shared = len([r for r in records.values() if "of" in r])
    spent += f"; {shared} of the runs were taken from other studies" if shared else ""
    return f", code of {', '.join(codes)}" + (f"; {'; '.join(machines)}" if machines else "") + spent

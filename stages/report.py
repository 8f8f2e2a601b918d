"""A page about the run, for people -> data/report.html."""

from pathlib import Path

from facm import check
from facm.report.page import page
from facm.report.run import Run, Workspace, grouped
from facm.runtime import dist
from facm.runtime.files import atomic_write
from facm.runtime.log import say

OUT = Path("data/report.html")
SEEN = ("data/latents/meta.json", "data/reference", "data/samples", "data/student/config.json", "metrics/distill")
SEEN += ("metrics/evaluate.json", "params.yaml")


def main() -> None:
    params = check.read()
    check.writable("data")
    dist.setup(params.runtime.threads)
    if dist.is_main():
        seen = (*SEEN, params.distill.teacher, params.report.curves, params.report.pictures)
        text = page(grouped([Run.of("this run", Workspace(within=seen))])).encode()
        with atomic_write(OUT) as file:
            file.write(text)
        say(f"report: {OUT}, {len(text) / 1e6:.1f} MB")
    dist.teardown()


if __name__ == "__main__":
    main()

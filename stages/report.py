"""A page about the run, for people -> data/report.html."""

from pathlib import Path

from facm import check, dist
from facm.files import whole
from facm.log import say
from facm.report.page import page
from facm.report.run import Run, Workspace, grouped

OUT = Path("data/report.html")


def main() -> None:
    params = check.read()
    check.writable("data")
    dist.setup(params.runtime.threads)
    if dist.is_main():
        text = page(grouped([Run.of("this run", Workspace())])).encode()
        with whole(OUT) as file:
            file.write(text)
        say(f"report: {OUT}, {len(text) / 1e6:.1f} MB")
    dist.teardown()


if __name__ == "__main__":
    main()

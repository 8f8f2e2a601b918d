"""What the commands of benchmarks have in common: measure, print the table, write the JSON file."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from facm.runtime import dist, files
from facm.runtime.log import say

Result = Mapping[str, Any]


def run(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    table: Callable[[Result], str],
) -> None:
    """Run a benchmark with `options.threads` CPU threads; its figures go to `options.json`, where that is asked.

    Raises:
        SystemExit: what cannot be measured, in one line.
    """
    dist.setup(options.threads)
    try:
        if options.json:
            files.refuse_no_target(options.json, "--json")
        result = measure(options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    say(table(result))
    if options.json:
        files.save_json(options.json, result)

"""Stands for every stage in tests of DVC alone: writes what dvc.yaml says the stage makes, from params and inputs."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

MADE = Path(".git/made")  # outputs that a test has put there beforehand


def main(stage: str) -> None:
    """Write each output: JSON, CSV, or a folder with two files, all telling the hash of what went in."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    described = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][stage]
    digest = hashlib.sha256(json.dumps([value(params, name) for name in described["params"]]).encode())
    for path in sorted(file for name in described["deps"] for file in (Path(name), *Path(name).rglob("*"))):
        digest.update(path.read_bytes() if path.is_file() else b"")
    number = int(digest.hexdigest()[:8], 16)
    for entry in (entry for kind in ("outs", "metrics", "plots") for entry in described.get(kind, [])):
        path = Path(entry if isinstance(entry, str) else next(iter(entry)))
        if path.suffix:
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({stage: number}) if path.suffix == ".json" else f"t,alpha\n0,{number}\n")
        elif (MADE / path).is_dir():
            shutil.copytree(MADE / path, path)
        else:
            path.mkdir(parents=True)
            for name in ("one.tsv", "two.tsv", "meta.json", "config.json"):  # two of them are deps of `report`
                (path / name).write_text(f"step\tloss\n1\t{number}\n")


def value(params: Any, name: str) -> Any:
    """A param by its dotted name, None where a part of it is interpolated."""
    for part in name.split("."):
        params = params.get(part) if isinstance(params, dict) else None
    return params


if __name__ == "__main__":
    main(sys.argv[1])

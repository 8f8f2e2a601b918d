"""An unfinished run goes on in a clone elsewhere, as docs/sharing.md says, and ends bit-identical."""

from pathlib import Path

import pytest
from clone import DVC, SOURCE, Clone, SecondSave, own_cache, ran
from documents import among, fenced

pytestmark = pytest.mark.slow


def test_a_run_that_is_killed_goes_on_in_a_clone_on_another_machine(
    clone: Clone, undisturbed: Clone, tmp_path: Path
) -> None:
    clone.dvc("remote", "add", "-d", "team", str(tmp_path / "remote"))
    clone.commit()
    clone.killed(DVC, "repro", when=SecondSave(clone, "teacher"))
    there = Clone(tmp_path / "there")
    clone.git("clone", "-q", ".", str(there.root))
    own_cache(there)
    page = fenced((SOURCE / "docs/sharing.md").read_text())
    pack, unpack = (among(page, f"carry {end}")[0].commands for end in ("from", "to"))
    told = ""
    for place, commands in ((clone, pack), (there, unpack)):
        for words in commands:
            words = [word.replace("carried.tar", str(tmp_path / "carried.tar")) for word in words]
            told = place.dvc(*words[1:]) if words[0] == "dvc" else place.run(*words)
    assert ran(told) == ["teacher", "baseline", "distill", "sample", "evaluate", "report"]
    assert "teacher: resumed at step " in told
    assert there.made() == undisturbed.made() and there.unfinished() == []

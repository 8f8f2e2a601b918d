"""kill -9 or a power cut while DVC writes its own files, in place: a part of dvc.lock or of its locks' list is left."""

import pytest
import yaml
from clone import Clone, in_part, ran

pytestmark = pytest.mark.slow

PARTS = 6
FIRST = ("reference", "latents", "teacher")


@pytest.mark.parametrize("committed", [False, True], ids=["never committed", "committed when half was done"])
def test_what_had_finished_comes_back_whatever_part_of_dvc_lock_is_left(built: Clone, committed: bool) -> None:
    path, whole, made = built.root / "dvc.lock", built.read("dvc.lock"), built.made()
    lock = yaml.safe_load(whole)
    if committed:
        path.write_text(yaml.safe_dump(lock | {"stages": {stage: lock["stages"][stage] for stage in FIRST}}))
    else:
        path.unlink()
    built.commit()
    told = []
    for part in range(PARTS):
        path.write_bytes(whole[: len(whole) * part // PARTS])
        told.append(built.repro())
        assert ran(told[-1]) == [], told[-1]
        assert yaml.safe_load(path.read_bytes()) == lock
        assert built.made() == made
    assert in_part(told[0])


def test_an_empty_list_of_locks_is_removed(built: Clone) -> None:
    built.dvc("status")
    (built.root / ".dvc/tmp/rwlock").write_bytes(b"")
    told = built.repro()
    assert in_part(told) and ran(told) == [], told

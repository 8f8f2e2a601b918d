"""data/latents, ready-made latents, tokens, and the marks beside shards of a run that was killed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniature
import pytest
import torch
from hypothesis import strategies as st
from judge import Wrong, campaign
from mutations import DEEP, as_json, edited, edits, plain, retensored, retensorings, rewritings, rewritten
from safetensors.torch import load_file, save
from torch import Tensor

from facm.data import codecs
from facm.data.datasets.precomputed import Precomputed
from facm.data.latents import statistics, store, tokens
from facm.data.latents.store import LatentSet
from facm.runtime.files import save_tensors, sha256

pytestmark = pytest.mark.slow

NUM = 14


def everything(folder: Path) -> tuple[Tensor, Tensor | None]:
    """All latents and labels, plain and mirrored, as training would see them; the set must hold together."""
    found = LatentSet.open(folder)
    indices = torch.arange(found.num)
    x, y = found.batch(indices, torch.arange(found.num) % 2 == 0 if found.flips else None)
    if x.shape != (found.num, *found.shape) or x.dtype != torch.float32:
        raise Wrong(f"latents {x.dtype} {tuple(x.shape)} of a set of {found.num} {found.shape}")
    if (y is None) != (found.num_classes == 0):
        raise Wrong(f"{found.num_classes} classes and labels {y}")
    if (
        y is not None
        and len(y)
        and not (0 <= int(y.min()) <= int(y.max()) < found.num_classes and y.dtype == torch.int64)
    ):
        raise Wrong(f"labels {y.dtype} {y.tolist()} of {found.num_classes} classes")
    for name in ("mean", "std"):
        value = getattr(found, name)
        if (
            value.shape != found.shape[:1]
            or not bool(value.isfinite().all())
            or (name == "std" and not bool((value > 0).all()))
        ):
            raise Wrong(f"{name} {value}")
    return x, y


@pytest.fixture
def made(folder: Path) -> Path:
    """A set of latents in three shards, with mirrored ones and labels."""
    miniature.write_latents(folder / "latents", num=NUM, flip=True, channels=2)
    return folder / "latents"


@pytest.mark.parametrize("name", ["meta.json", "stats.safetensors", "shard_00001.safetensors"])
def test_damaged_files_of_latents(name: str, made: Path) -> None:
    path = made / name
    content, before = path.read_bytes(), everything(made)
    head = 8 + int.from_bytes(content[:8], "little")

    def trial(changes: Any) -> Callable[[], Any]:
        damaged = edited(content, changes)
        path.write_bytes(damaged)

        def read() -> None:
            x, y = everything(made)
            payload = name.startswith("shard") and len(damaged) == len(content) and damaged[:head] == content[:head]
            intact = torch.equal(x, before[0]) and y is not None and torch.equal(y, before[1])
            if not intact and not payload:
                raise Wrong("other latents than those that were written")

        return read

    campaign(f"latents {path.suffix}", edits(len(content)), trial, 300, folder=made, names=[str(made)])


def test_meta_json_of_other_values(made: Path) -> None:
    path = made / "meta.json"
    meta = json.loads(path.read_text())

    def trial(drawn: Any) -> Callable[[], Any]:
        path.write_bytes(
            drawn
            if isinstance(drawn, bytes)
            else as_json(meta | drawn if isinstance(drawn, dict) else rewritten(meta, drawn))
        )
        return lambda: everything(made)

    inputs = st.one_of(
        rewritings(),
        rewritings(1),
        st.dictionaries(st.sampled_from(sorted(meta)), plain(), min_size=1, max_size=2),
        st.sampled_from(DEEP),
    )
    campaign("latents meta.json", inputs, trial, 350, folder=made, names=[str(made)])


@pytest.mark.parametrize("name", ["stats.safetensors", "shard_00000.safetensors"])
@pytest.mark.parametrize("recorded", [True, False])
def test_latents_of_other_tensors(name: str, recorded: bool, made: Path) -> None:
    """As a script of the user's own may write them; `recorded`: and note their size and sha256 in meta.json."""
    path, meta = made / name, json.loads((made / "meta.json").read_text())
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    original = path.read_bytes()

    def trial(changes: Any) -> Callable[[], Any]:
        content = save(retensored(tensors, changes))
        path.write_bytes(content)
        entry = meta["stats"] if name.startswith("stats") else meta["shards"][0]
        if recorded:
            entry |= {"bytes": len(content), "sha256": sha256(path)}
            (made / "meta.json").write_text(json.dumps(meta))

        def read() -> None:
            everything(made)
            if not recorded and content != original and name.startswith("stats"):
                raise Wrong("other statistics than those whose sha256 meta.json has")

        return read

    campaign("latents of other tensors", retensorings(), trial, 200, folder=made, names=[str(made)])


@pytest.mark.parametrize("damage", ["mark", "shard"])
def test_shards_of_a_run_that_was_killed(damage: str, folder: Path) -> None:
    """A mark that cannot be read is none: the shard is encoded again."""
    shard = folder / "shard_00000.safetensors"
    described = save_tensors(shard, {"latents": torch.randn(5, 2, 4, 4)}) | {"num": 5}
    moments = store.Moments.of(load_file(shard)["latents"]).plain()
    mark = {"described": described, "moments": moments}
    store.mark(shard, mark)
    path = shard if damage == "shard" else shard.with_suffix(".json")
    content = path.read_bytes()

    def trial(drawn: Any) -> Callable[[], Any]:
        kind, changes = drawn
        path.write_bytes(edited(content, changes) if kind == "bytes" else as_json(rewritten(mark, changes)))

        def read() -> None:
            found = store.marked(shard, store.Marked)
            if found is None:
                return
            store.Moments.of_plain(found["moments"])
            if sha256(shard) != described["sha256"]:
                raise Wrong("another shard than the one that was marked")

        return read

    damaged = st.tuples(st.just("bytes"), edits(len(content)))
    inputs = damaged if damage == "shard" else st.one_of(damaged, st.tuples(st.just("values"), rewritings()))
    campaign("marks of shards", inputs, trial, 300, folder=folder, names=[str(folder)])


@pytest.fixture
def ready(folder: Path) -> Path:
    """Latents as the published code has made them, of two ranks."""
    root = folder / "extracted"
    root.mkdir()
    for rank in range(2):
        for number in range(2):
            (root / f"latents_rank{rank:02d}_shard{number:03d}.safetensors").write_bytes(save(published(rank, number)))
    torch.save({"mean": torch.ones(1, 3, 1, 1), "std": torch.full((1, 3, 1, 1), 2.0)}, root / "latents_stats.pt")
    return root


def published(rank: int, number: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(10 * rank + number)
    z = torch.randn(2, 4 - number, 3, 2, 2, generator=generator)
    return {"latents": z[0].contiguous(), "latents_flip": z[1].contiguous(), "labels": torch.arange(4 - number)}


def taken_over(root: Path, *, flip: bool, labels: bool) -> list[dict[str, Tensor]]:
    """Every shard of ready-made latents, and their statistics, as the stage latents reads them."""
    found = Precomputed(root)
    found.fingerprint()
    found.refuse_uneven()
    statistics.read(found.statistics_path)
    shards = [found.read(number, flip=flip, labels=labels) for number in range(len(found.paths))]
    for shard in shards:
        z = shard["latents"]
        if z.ndim != 4 or not bool(z.isfinite().all()) or not len(z) or 0 in z.shape:
            raise Wrong(f"latents {tuple(z.shape)}")
        if labels and (shard["labels"].shape != z.shape[:1] or int(shard["labels"].min()) < 0):
            raise Wrong("labels")
    return shards


@pytest.mark.parametrize("how", ["bytes", "tensors"])
def test_ready_made_latents(how: str, ready: Path) -> None:
    path = sorted(ready.glob("*.safetensors"))[1]
    content, tensors = path.read_bytes(), published(0, 1)

    def trial(drawn: Any) -> Callable[[], Any]:
        changes, flip, labels = drawn
        path.write_bytes(edited(content, changes) if how == "bytes" else save(retensored(tensors, changes)))
        return lambda: taken_over(ready, flip=flip, labels=labels)

    inputs = st.tuples(edits(len(content)) if how == "bytes" else retensorings(), st.booleans(), st.booleans())
    campaign("ready-made latents", inputs, trial, 400, folder=ready, names=[str(ready)])


def test_ready_made_latents_are_adopted_or_refused(ready: Path, folder: Path) -> None:
    """What is adopted opens; the source is not touched."""
    path = sorted(ready.glob("*.safetensors"))[1]
    tensors = published(0, 1)

    def trial(drawn: Any) -> Callable[[], Any]:
        changes, flip, labels = drawn
        path.write_bytes(save(retensored(tensors, changes)))

        def read() -> None:
            out = folder / "latents"
            codec = codecs.build("identity")
            store.adopt(
                out,
                Precomputed(ready),
                codec,
                flip=flip,
                labels=labels,
                dataset_name="precomputed",
                fingerprint="f" * 64,
            )
            everything(out)

        return read

    inputs = st.tuples(retensorings(), st.booleans(), st.booleans())
    campaign("ready-made latents", inputs, trial, 120, folder=ready, names=[str(ready), "data.root", "data/latents"])


def test_ready_made_latents_of_other_names(ready: Path) -> None:
    """Files that are renamed, lost, or of another kind."""
    shards = sorted(ready.iterdir())
    contents = {path.name: path.read_bytes() for path in shards}
    names = st.sampled_from(
        [
            "latents_rank00_shard000.safetensors",
            "latents_rank1_shard1.safetensors",
            "latents_rank_shard.safetensors",
            "latents_rank٣_shard1.safetensors",
            "latents_rank00_shard000 (1).safetensors",
            "latents_stats.pt",
            "x",
            "meta.json",
            "latents_rank99999999999_shard0.safetensors",
            "latents_rank02_shard000.safetensors",
            "latents_rank00_shard002.safetensors",
        ]
    )
    what = st.sampled_from(["file", "folder", "link to nowhere", "empty"])

    def trial(drawn: Any) -> Callable[[], Any]:
        for path in ready.iterdir():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        for name, content in contents.items():
            (ready / name).write_bytes(content)
        for which, name, kind in drawn:
            source, target = ready / sorted(contents)[which], ready / name
            if target.exists() or target.is_symlink() or not source.is_file():
                continue
            if kind == "file":
                source.rename(target)
            elif kind == "folder":
                target.mkdir()
            elif kind == "link to nowhere":
                target.symlink_to(ready / "nowhere")
            else:
                target.write_bytes(b"")
        return lambda: taken_over(ready, flip=True, labels=True)

    inputs = st.lists(st.tuples(st.integers(0, 4), names, what), min_size=1, max_size=3)
    campaign("ready-made latents' names", inputs, trial, 300, folder=ready, names=[str(ready)])


class Encoder:
    """Random tokens."""

    name = "random"

    def tokens(self, images: Tensor) -> Tensor:
        return torch.randn(len(images), 4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [tokens.INDEX, "tokens_00001.safetensors"])
def test_tokens(name: str, folder: Path) -> None:
    pictures = miniature.pictures(NUM)
    sizes: dict[str, Any] = {"flip": True, "shard_size": 5, "batch_size": 5, "fingerprint": "f" * 64}
    tokens.write(folder, lambda rows: pictures.images[rows.start : rows.stop], NUM, Encoder(), **sizes)
    path = folder / name
    content = path.read_bytes()
    index = json.loads((folder / tokens.INDEX).read_text())
    tensors = None if name == tokens.INDEX else {key: tensor.clone() for key, tensor in load_file(path).items()}

    def trial(drawn: Any) -> Callable[[], Any]:
        kind, changes = drawn
        if kind == "bytes":
            path.write_bytes(changes if isinstance(changes, bytes) else edited(content, changes))
        else:
            path.write_bytes(
                as_json(rewritten(index, changes)) if tensors is None else save(retensored(tensors, changes))
            )

        def read() -> None:
            found = tokens.TokenSet.find(folder, num=NUM, flips=True, fingerprint="f" * 64)
            if found is None:
                return
            seen = found.batch(torch.arange(found.num), torch.arange(found.num) % 2 == 0)
            if seen.shape != (NUM, *found.shape) or seen.dtype != torch.float32:
                raise Wrong(f"tokens {seen.dtype} {tuple(seen.shape)}")

        return read

    values = st.tuples(st.just("values"), rewritings() if tensors is None else retensorings())
    damage = st.tuples(st.just("bytes"), st.one_of(edits(len(content)), st.sampled_from(DEEP)))
    campaign("tokens", st.one_of(values, damage), trial, 300, folder=folder, names=[str(folder)])

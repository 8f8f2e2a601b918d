"""VAE codecs, at small width and with random weights: loaded as published files are, compared with LDM's blocks."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import ldm_reference
import numpy as np
import pytest
import torch
from ldm_reference import random_weights
from miniature import write_checkpoint, write_params
from safetensors.torch import load_file, save_file

import facm
from facm.data import codecs, datasets
from facm.data.codecs.sd_vae import SdVae
from facm.data.codecs.va_vae import VaVae
from facm.data.images.images import Images
from facm.data.latents import autoencoder, ldm, store
from facm.networks import checkpoint
from facm.runtime.files import sha256
from stages import latents as stage

WIDTH = 32


def published(codec: type) -> dict[str, torch.Tensor]:
    """Weights of a codec's architecture as LDM's training leaves them, with what they do not need for decoding."""
    a = codec.architecture
    extra = {"loss.logvar": torch.zeros(()), "foundation_model.model.cls_token": torch.zeros(1, 1, 8)}
    extra |= {"linear_proj.weight": torch.zeros(8, a.channels, 1, 1), "model_ema.decay": torch.zeros(())}
    return random_weights(WIDTH, a.multipliers, a.channels, a.attention) | extra


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """va.pt and sd.safetensors in LDM's layout, and sd/, a folder of diffusers."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae")
    torch.save({"state_dict": published(VaVae), "global_step": 7}, folder / "va.pt")
    save_file(published(SdVae), folder / "sd.safetensors")
    network = AutoencoderKL(**SdVae.architecture.config(WIDTH))
    network.load_state_dict(ldm.converted(load_file(folder / "sd.safetensors")), strict=True)
    network.save_pretrained(folder / "sd")
    return folder


@pytest.fixture(scope="module")
def va(files: Path) -> VaVae:
    return VaVae(str(files / "va.pt"))


def pictures(num: int = 3, side: int = 32) -> torch.Tensor:
    """Random, uint8 (num, side, side, 3)."""
    return torch.randint(0, 256, (num, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def x(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize(("codec", "num"), [(SdVae, 83_653_863), (VaVae, 69_836_067)], ids=["sd", "va"])
def test_at_published_width_the_networks_have_the_published_numbers_of_weights(codec: type, num: int) -> None:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        network = AutoencoderKL(**codec.architecture.config(codec.architecture.width))
        names = random_weights(
            WIDTH, codec.architecture.multipliers, codec.architecture.channels, codec.architecture.attention
        )
    assert sum(weight.numel() for weight in network.parameters()) == num
    assert set(ldm.converted(names)) == set(network.state_dict())
    assert network.config.norm_num_groups == 32 and network.encoder.conv_norm_out.eps == 1e-6


@pytest.mark.parametrize(
    ("codec", "file", "side"), [(SdVae, "sd.safetensors", 16), (VaVae, "va.pt", 32)], ids=["sd", "va"]
)
def test_a_converted_network_computes_what_ldms_blocks_do(codec: type, file: str, side: int, files: Path) -> None:
    made, weights = codec(str(files / file), posterior="mode"), published(codec)
    images = pictures(2, side)
    mean, logvar = ldm_reference.encode(weights, x(images))
    scale = codec.architecture.scale
    torch.testing.assert_close(made.encode(images), mean * scale, rtol=1e-4, atol=1e-4 * scale)
    assert made.encode(images).shape[1:] == made.latent_shape(images.shape[1:]) == (codec.architecture.channels, 2, 2)
    found = made.network.encode(x(images)).latent_dist
    torch.testing.assert_close(found.logvar, logvar, rtol=1e-4, atol=1e-4)
    z = torch.randn(2, codec.architecture.channels, 2, 2, generator=torch.Generator().manual_seed(2))
    decoded = ldm_reference.decode(weights, z)
    torch.testing.assert_close(made.network.decode(z).sample, decoded, rtol=1e-4, atol=1e-4)
    levels = (127.5 * decoded + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)  # as DiT and LightningDiT do
    differ = (made.decode(z * scale).int() - levels.int()).abs()
    assert int(differ.max()) <= 1 and float((differ > 0).float().mean()) < 1e-2


def test_a_folder_of_diffusers_and_a_file_of_ldm_are_the_same_codec(files: Path) -> None:
    one, two = SdVae(str(files / "sd")), SdVae(str(files / "sd.safetensors"))
    assert torch.equal(one.encode(pictures(1, 16)), two.encode(pictures(1, 16)))
    assert one.sha256 == sha256(files / "sd/diffusion_pytorch_model.safetensors") != two.sha256


def test_the_published_folders_older_names_of_attention_are_known(files: Path, tmp_path: Path) -> None:
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    shutil.copytree(files / "sd", tmp_path / "sd")
    path = tmp_path / "sd/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    for new, old in older.items():
        weights = {name.replace(f".{new}.", f".{old}."): value.clone() for name, value in weights.items()}
    assert "encoder.mid_block.attentions.0.query.weight" in weights
    save_file(weights, path)
    assert torch.equal(
        SdVae(str(tmp_path / "sd")).encode(pictures(1, 16)), SdVae(str(files / "sd")).encode(pictures(1, 16))
    )


def test_a_latent_is_drawn_from_the_posterior_by_the_streams_own_noise(va: VaVae, files: Path) -> None:
    images = pictures(3)
    mean, logvar = ldm_reference.encode(published(VaVae), x(images))
    philox = [np.random.Philox(key=[0, stream], counter=[0, 0, 0, 1]) for stream in (4, 9, 2)]
    normals = np.stack([np.random.Generator(p).standard_normal((32, 2, 2)) for p in philox])
    expected = mean + (logvar / 2).exp() * torch.from_numpy(normals).float()
    torch.testing.assert_close(va.encode(images, [4, 9, 2]), expected, rtol=1e-4, atol=1e-4)
    other = VaVae(str(files / "va.pt"), seed=1)
    assert not torch.allclose(other.encode(images[:1], [4]), expected[:1], atol=1e-2)


def test_latents_do_not_depend_on_the_batch(va: VaVae, monkeypatch: pytest.MonkeyPatch) -> None:
    images, streams = pictures(5), [8, 1, 3, 5, 13]
    whole, rebuilt = va.encode(images, streams), va.decode(va.encode(images, streams))
    monkeypatch.setattr(autoencoder, "AT_ONCE", 2)
    torch.testing.assert_close(va.encode(images, streams), whole, rtol=1e-5, atol=1e-5)
    alone = torch.cat([va.encode(images[i : i + 1], [streams[i]]) for i in range(5)])
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-5)
    assert int((va.decode(whole).int() - rebuilt.int()).abs().max()) <= 1


def test_the_network_sees_a_few_pictures_at_a_time(va: VaVae, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "AT_ONCE", 2)
    seen: list[int] = []
    parts = (va.network.encoder, va.network.decoder)
    hooks = [part.register_forward_hook(lambda _, given, out: seen.append(len(given[0]))) for part in parts]
    va.decode(va.encode(pictures(5)))
    for hook in hooks:
        hook.remove()
    assert seen == [2, 2, 1] * 2


def test_decoded_levels_are_rounded_as_named_and_clamped(
    files: Path, va: VaVae, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor = VaVae(str(files / "va.pt"), rounding="floor")
    levels = torch.tensor([-9.0, 0.4, 0.6, 254.6, 300.0]) / 127.5 - 1
    for codec, expected in ((va, [0, 0, 1, 255, 255]), (floor, [0, 0, 0, 254, 255])):
        drawn = type("Out", (), {"sample": levels.view(1, 1, 1, 5).expand(1, 3, 1, 5)})
        monkeypatch.setattr(codec.network, "decode", lambda z, drawn=drawn: drawn)
        assert codec.decode(torch.zeros(1, 32, 1, 1))[0, 0, :, 1].tolist() == expected


def test_weights_are_pinned_by_their_sha256(files: Path) -> None:
    pinned = SdVae(str(files / "sd"), sha256(files / "sd/diffusion_pytorch_model.safetensors"))
    assert codecs.build("sd_vae", **pinned.options).options == pinned.options
    with pytest.raises(ValueError, match="latents.vae_sha256 .*: pinned is 0000.* but .* has"):
        SdVae(str(files / "sd"), "0" * 64)


def test_a_name_on_the_hub_is_fetched_or_told(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def fetched(name: str, file: str) -> str:
        asked.append((name, file))
        return str(files / "sd" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    assert SdVae("stabilityai/sd-vae-ft-ema").options["vae"] == "stabilityai/sd-vae-ft-ema"
    assert asked == [
        ("stabilityai/sd-vae-ft-ema", file) for file in ("config.json", "diffusion_pytorch_model.safetensors")
    ]

    def offline(name: str, file: str) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(FileNotFoundError, match="no folder or file stabilityai/sd-vae, and it could not be fetched"):
        SdVae("stabilityai/sd-vae")
    with pytest.raises(FileNotFoundError, match="latents.vae: there is neither a folder nor a file /no/such/vae.pt"):
        SdVae("/no/such/vae.pt")


def broken(files: Path, folder: Path, change) -> str:
    """The message for va.pt with changed weights."""
    weights = published(VaVae)
    change(weights)
    torch.save({"state_dict": weights}, folder / "changed.pt")
    with pytest.raises(ValueError) as refused:
        VaVae(str(folder / "changed.pt"))
    return str(refused.value)


def test_weights_of_another_form_are_refused_with_what_differs(files: Path, tmp_path: Path) -> None:
    told = broken(files, tmp_path, lambda w: w.pop("decoder.up.4.attn.2.q.bias"))
    assert "is no weights of 'va_vae': 1 weights are missing ['decoder.up_blocks.0.attentions.2.to_q.bias']" in told
    told = broken(files, tmp_path, lambda w: w.update({"decoder.conv_in.weight": torch.zeros(128, 4, 3, 3)}))
    assert "1 of another shape ['decoder.conv_in.weight (128, 4, 3, 3) instead of (128, 32, 3, 3)']" in told
    told = broken(
        files, tmp_path, lambda w: w.update({"decoder.mid.attn_2.q.weight": torch.zeros(1), "vf.x": torch.zeros(1)})
    )
    assert "2 names are not of LDM's autoencoder: decoder.mid.attn_2.q.weight, vf.x" in told
    with pytest.raises(ValueError, match="is no weights of 'va_vae': .* unexpected"):
        VaVae(str(files / "sd.safetensors"))
    torch.save({"state_dict": {}}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match="holds no weights, neither at the top nor under 'state_dict'"):
        VaVae(str(tmp_path / "none.pt"))
    (tmp_path / "half").mkdir()
    shutil.copy(files / "sd/config.json", tmp_path / "half")
    with pytest.raises(FileNotFoundError, match="has not both config.json and diffusion_pytorch_model.safetensors"):
        SdVae(str(tmp_path / "half"))


def test_a_folder_with_another_scale_is_refused(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "sd", tmp_path / "xl")
    config = json.loads((tmp_path / "xl/config.json").read_text())
    (tmp_path / "xl/config.json").write_text(json.dumps(config | {"scaling_factor": 0.13025}))
    with pytest.raises(ValueError, match="its config.json has scaling_factor 0.13025, needed is 0.18215"):
        SdVae(str(tmp_path / "xl"))
    (tmp_path / "xl/config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"latents.vae: .*config.json: must be an object of names and values"):
        SdVae(str(tmp_path / "xl"))


def test_codec_and_sizes_are_refused_before_pictures_are_looked_at(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "admit", lambda block: pytest.fail("the pictures were looked at"))
    common = {"data__name": "folder", "data__root": "pictures", "latents__codec": "sd_vae"}
    changes = (
        ({"latents__vae": str(files / "sd"), "latents__vae_sha256": "0" * 64}, "pinned is 000"),
        ({"latents__vae": str(files / "sd"), "data__side": 12}, "sides in multiples of 8, these are 12x12"),
        ({"latents__vae": "/nowhere/vae.pt"}, "neither a folder nor a file /nowhere/vae.pt"),
    )
    for change, message in changes:
        write_params(tmp_path, **common | change)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            stage.main()
    with pytest.raises(ValueError, match="latents.posterior: unknown 'mean'; known: sample, mode"):
        SdVae(str(files / "sd"), posterior="mean")


def test_pictures_that_do_not_divide_are_refused(va: VaVae) -> None:
    for shape in ((40, 32, 3), (32, 32, 1)):
        with pytest.raises(
            ValueError, match=r"'va_vae' needs RGB pictures with sides in multiples of 16, these are 32x"
        ):
            va.latent_shape(shape)


def test_a_checkpoint_decodes_with_its_own_weights_wherever_they_lie(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(files / "va.pt", tmp_path / "here.pt")
    codec = VaVae(str(tmp_path / "here.pt"), posterior="mode")
    options = {"dataset_name": "random", "fingerprint": "f" * 64, "batch_size": 4}
    store.write(tmp_path / "latents", Images(pictures(6), None, 0), codec, flip=False, shard_size=4, **options)
    found = store.LatentSet.open(tmp_path / "latents")
    assert (
        found.codec_options
        == codec.options
        == {
            "vae": str(tmp_path / "here.pt"),
            "vae_sha256": sha256(files / "va.pt"),
            "posterior": "mode",
            "seed": 0,
        }
    )
    config = write_checkpoint(tmp_path / "teacher", found, backbones__lightningdit__patch_size=1)
    assert config.codec == "va_vae" and config.codec_options == codec.options
    teacher = facm.load(tmp_path / "teacher")
    x1, _ = found.batch(range(6))
    decoded = codec.decode(torch.cat([shard["latents"] for shard in found.shards])).numpy()
    assert np.abs(teacher.decode(x1).astype(int) - decoded.astype(int)).max() <= 1
    (tmp_path / "here.pt").rename(tmp_path / "there.pt")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a file .*here.pt"):
        facm.load(tmp_path / "teacher")
    drawn = facm.load(tmp_path / "teacher", vae=str(tmp_path / "there.pt")).generate(
        None, num=2, nfe=1, sampler="euler"
    )
    assert drawn.shape == (2, 32, 32, 3) and drawn.dtype == np.uint8
    with pytest.raises(ValueError, match="pinned is"):
        facm.load(tmp_path / "teacher", vae=str(files / "sd"))


def test_checkpoints_of_another_vae_do_not_go_together(tmp_path: Path) -> None:
    from dataclasses import replace

    from miniature import write_latents

    config = write_checkpoint(tmp_path / "teacher", write_latents(tmp_path / "latents"))
    described = json.loads((tmp_path / "teacher/config.json").read_text())
    assert "codec_options" not in described and config.codec_options == {}, "as older checkpoints have it"
    other = replace(config, codec_options={"vae_sha256": "0" * 64})
    with pytest.raises(checkpoint.CheckpointError, match="codec weights of sha256 000.*, data/latents with None"):
        checkpoint.check_fits(config, other, "data/teacher")
    with pytest.raises(ValueError, match="codec 'identity' of this checkpoint has no weights"):
        facm.load(tmp_path / "teacher", vae="x")

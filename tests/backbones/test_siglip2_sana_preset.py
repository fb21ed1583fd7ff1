"""SigLIP 2 and SANA in the model: stages, published weights, the command line."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from builders import (
    ROOT,
    SIDE,
    batches,
    built,
    unified,
)
from safetensors.torch import load_file, save_file
from small_siglip2_sana import (
    DC_AE,
    SANA,
    SIGLIP,
    dc_ae,
    images,
    library_sana,
    library_siglip,
    released_features,
    sana,
    siglip,
    small_sana,
)
from tolerances import assert_close
from torch import nn

from triptych.checkpoints import WeightFiles
from triptych.checkpoints.published.siglip_sana import convert_siglip_sana, full_names
from triptych.cli.main import main
from triptych.inference.model_inference import inference_of
from triptych.interfaces import TEXT_TO_IMAGE, ImageEncoder
from triptych.modules import PixelDecoderModule, UnifiedModule
from triptych.utils.errors import UserError
from triptych.utils.images import pixels_to_unit

# --- in the model ---------------------------------------------------------------------------------


def converted(sources, target):
    """The weight files that `sources` become."""
    convert_siglip_sana([str(source) for source in sources], target)
    assert {path.name for path in target.iterdir()} == {
        "encoder.safetensors",
        "vae.safetensors",
        "decoder.safetensors",
    }
    labels = ("encoder", "vae", "decoder")
    files = {label: str(target / f"{label}.safetensors") for label in labels}
    return WeightFiles(**files)


def paired(weights, **settings):
    """Encoder and decoder in their composer, in the stage that trains the decoder."""
    options = {"loss_weights": {"decoding": 1.0}, "stage": "decoder", **settings}
    model = UnifiedModule(
        encoder=siglip(),
        vae=dc_ae(),
        decoding=PixelDecoderModule(sana()),
        weights=weights,
        **options,
    )
    model.configure_model()
    return model


def batch_of(samples):
    """A batch of captioned images, as the DataModule builds it for any model of this size."""
    return batches(unified("stage2"), samples, TEXT_TO_IMAGE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Library folders as published: SigLIP, and SANA with `transformer/` and `vae/`."""
    folder = tmp_path_factory.mktemp("published")
    library_siglip().save_pretrained(folder / "siglip")
    transformer, vae = library_sana()
    transformer.save_pretrained(folder / "sana" / "transformer")
    vae.save_pretrained(folder / "sana" / "vae")
    return folder


@pytest.fixture(scope="module")
def files(folders):
    """Weight files of ours from the folders."""
    return converted([folders / "siglip", folders / "sana"], folders / "ours")


def test_stage_trains_the_parts_that_the_decoder_names(files, samples):
    model = paired(files).train()
    beginnings = {".".join(name.split(".")[:3]) for name in model.trained}
    assert beginnings == {"decoding.decoder.transformer", "decoding.decoder.connector"}
    assert not model.encoder.training and not model.vae.vae.training
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    loss, _ = model.step(batch_of(samples))
    loss.backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == model.trained


def test_the_panel_hands_over_the_black_image_once(files, samples):
    model = paired(files)
    calls = []
    model.encoder.register_forward_hook(lambda module, given, made: calls.append(len(given[0])))
    with torch.inference_mode():  # as in validation; training goes on afterwards
        inference_of(model).reconstruct(images(2), seeds=[0, 1])
    black = model.encoder(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))[0]
    assert calls == [2, 1, 1]
    assert torch.equal(model.decoding.decoder.null_features, black)
    model.step(batch_of(samples))[0].backward()
    inference_of(model).reconstruct(images(2), seeds=[0, 1])
    assert calls == [2, 1, 1, 4, 2]
    assert not [name for name in model.trained_state() if "null" in name]


class Colours(ImageEncoder):
    """A user's own encoder, with no more than the role asks for: colours of 3x3 regions."""

    feature_shape, image_size = (32, 3, 3), SIDE

    def build(self):
        self.mix = nn.Conv2d(3, 32, 1)

    def forward(self, pixels):
        return self.mix(nn.functional.adaptive_avg_pool2d(pixels_to_unit(pixels), 3))


def test_an_encoder_of_ones_own_has_a_black_image_for_the_decoder():
    panel = PixelDecoderModule(sana(), built(Colours()), built(dc_ae()))
    panel.decoder.build()
    pixels = panel.decode(torch.zeros(2, 32, 3, 3), [0, 1])
    assert pixels.shape == (2, 3, SIDE, SIDE)
    mix = panel.encoder.mix
    black = mix.bias - mix.weight[:, :, 0, 0].sum(1)  # -1 in every channel
    assert torch.allclose(
        panel.decoder.null_features, black[:, None, None].expand(32, 3, 3), atol=1e-6
    )


def test_a_decoder_that_wants_a_blank_image_needs_the_encoder():
    panel = PixelDecoderModule(sana(), siglip(), dc_ae())
    with pytest.raises(UserError, match="no weights of its image encoder.*weights.encoder=FILE"):
        panel.decode(torch.zeros(1, 32, 3, 3), [0])


# --- published weights ----------------------------------------------------------------------------


def assert_computes_as(model, tower, transformer, vae):
    """The model's parts do what the library's models do."""
    _, features = released_features(tower, images(2))
    x, t, condition = torch.randn(2, 4, 6, 6), torch.tensor([0.5, 1.0]), torch.randn(2, 9, 48)
    decoder = model.decoding.decoder.eval()
    with torch.no_grad():
        latents = vae.encode(pixels_to_unit(images(2))).latent * decoder.vae.scaling
        velocity = transformer(x, condition, 1000 * t).sample
        assert_close(model.encoder(images(2)), features)
        assert_close(decoder.vae(images(2)), latents)
        assert_close(decoder.velocity(x, t, condition), velocity)


@pytest.mark.parametrize("kind", ["tower alone", "whole SigLIP", "in shards"])
def test_library_folders_become_weight_files(kind, folders, tmp_path):
    whole = library_siglip(whole=kind == "whole SigLIP")
    options = {"max_shard_size": "20KB"} if kind == "in shards" else {}
    whole.save_pretrained(tmp_path / "siglip", **options)
    assert (len(list((tmp_path / "siglip").glob("*.safetensors"))) > 1) == (kind == "in shards")
    sources = [tmp_path / "siglip", folders / "sana"]
    model = paired(converted(sources, tmp_path / "ours"))
    tower = whole.vision_model if kind == "whole SigLIP" else whole
    assert_computes_as(model, tower, *library_sana())
    # Published nowhere but in the joint release: it starts as it was built.
    assert model.decoding.decoder.connector[-1].weight.eq(5.5**0.5).all()


def joint_release(tower, transformer, vae, connector, wrapper=""):
    """Tensors under the names of the joint release."""
    parts = {
        f"encoder.model.{wrapper}": tower,
        "transformer.transformer.": transformer,
        "transformer.connector.": connector,
        "vae.": vae,
    }
    return {
        beginning + name: tensor
        for beginning, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize("wrapper", ["", "vision_model."])
def test_the_joint_release_becomes_weight_files(wrapper, tmp_path):
    tower, (transformer, vae) = library_siglip(), library_sana()
    connector = small_sana().connector
    released = joint_release(tower, transformer, vae, connector, wrapper)
    assert "transformer.connector.3.weight" in released
    save_file(released, tmp_path / "model.safetensors")
    model = paired(converted([tmp_path], tmp_path / "ours"))
    assert_computes_as(model, tower, transformer, vae)
    features = torch.randn(2, 32, 3, 3)
    tokens = features.flatten(2).transpose(1, 2)
    assert_close(model.decoding.decoder.condition(features), connector(tokens))


def test_names_that_nothing_reads_are_left_out():
    names = full_names(
        f"encoder.model.vision_model.{name}"
        for name in [
            "embeddings.position_ids",
            "embeddings.position_embedding.weight",
            "encoder.layers.9.mlp.fc1.bias",
            "encoder.layers.10.mlp.fc1.bias",
            "post_layernorm.weight",
            "head.probe",
        ]
    )
    assert list(names.values()) == [
        "encoder.tower.embeddings.position_embedding.weight",
        "encoder.tower.encoder.layers.9.mlp.fc1.bias",
    ]


def test_another_checkpoint_is_refused(folders, tmp_path):
    with pytest.raises(UserError, match=r"holds no weights .*diffusion_pytorch_model.safetensors"):
        convert_siglip_sana([str(tmp_path)], tmp_path / "ours")
    for name in ("down_blocks.0.weight", "encoder.model.decoder.weight"):
        save_file({name: torch.zeros(2)}, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match="is no tensor of SigLIP 2 or SANA"):
            converted([folders / "sana", tmp_path], tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


# --- from the command line ------------------------------------------------------------------------


def test_convert_takes_both_library_folders_at_once(folders, files, tmp_path, capsys):
    ours = tmp_path / "ours"
    main(["convert", str(folders / "siglip"), str(folders / "sana"), str(ours)])
    said = capsys.readouterr().out
    assert "no source has the connector: it starts at random" in said and "is complete" in said
    for label in ("encoder", "vae", "decoder"):
        made, expected = ours / f"{label}.safetensors", getattr(files, label)
        assert made.read_bytes() == Path(expected).read_bytes()
    main(["convert", str(folders / "siglip"), str(tmp_path / "tower")])
    assert [path.name for path in (tmp_path / "tower").iterdir()] == ["encoder.safetensors"]
    assert "no source is a SANA" in capsys.readouterr().out


def test_convert_takes_the_joint_release(tmp_path):
    released = joint_release(library_siglip(), *library_sana(), small_sana().connector)
    save_file(released, tmp_path / "model.safetensors")
    main(["convert", str(tmp_path), str(tmp_path / "ours")])
    decoder = load_file(tmp_path / "ours" / "decoder.safetensors")
    norm = decoder["decoding.decoder.connector.3.weight"]
    assert torch.equal(norm, released["transformer.connector.3.weight"])


def test_convert_refuses_mismatched_components(folders, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    flux = tmp_path / "flux"
    shutil.copytree(folders / "sana", flux)
    (flux / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    siglip_folder, target = folders / "siglip", tmp_path / "ours"
    for status, says, words in (
        (1, "other is neither SigLIP nor SANA", [siglip_folder, other]),
        (1, "takes no --encoder or --decoder; name both", [siglip_folder, "--decoder", flux]),
        (1, "is of a FluxTransformer2DModel, and SANA has a SanaTrans", [siglip_folder, flux]),
        (2, "a model file is the only SOURCE; leave out", ["model.yaml", siglip_folder]),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["convert", *map(str, words), str(target)])
        assert stopped.value.code == status and says in capsys.readouterr().err
        assert not target.exists()


@pytest.mark.parametrize("kind", ["siglip2", "siglip2_vision_model"])
def test_convert_says_which_siglip_2_it_takes(kind, folders, tmp_path, capsys):
    naflex, target = tmp_path / "naflex", tmp_path / "ours"
    naflex.mkdir()
    (naflex / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    for sources in ([naflex], [naflex, folders / "sana"]):
        with pytest.raises(SystemExit) as stopped:
            main(["convert", *map(str, sources), str(target)])
        said = capsys.readouterr().err
        assert stopped.value.code == 1 and said.count("\n") == 1 and not target.exists()
        assert f"config.json is of a NaFlex SigLIP 2 ({kind})" in said
        assert "fixed resolution" in said and "google/siglip2-so400m-patch16-512" in said


SWAP = [
    "--model.encoder=triptych.backbones.Siglip2",
    *(f"--model.encoder.{name}={value}" for name, value in SIGLIP.items()),
    "--model.decoding.decoder=triptych.backbones.SanaDecoder",
    *(f"--model.decoding.decoder.{k}={v}" for k, v in SANA.items() if k != "sampling"),
    "--model.decoding.decoder.sampling.num_inference_steps=2",
    "--model.vae=triptych.backbones.DCAutoencoder",
    *(f"--model.vae.{name}={value}" for name, value in DC_AE.items()),
]


@pytest.fixture
def fit(monkeypatch, tmp_path, shapes_folder):
    """Runs `triptych fit` of a stage of the tiny preset in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["triptych"])
    short = {"max_steps": 1, "limit_val_batches": 1, "val_check_interval": 1}
    sheets = {"every_n_steps": 1, "num_samples": 2}
    short["callbacks"] = [
        {"class_path": "triptych.callbacks.ExportWeights"},
        {"class_path": "triptych.callbacks.SampleGrid", "init_args": sheets},
    ]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump({"trainer": short}))

    def run(stage, *flags):
        conf = ROOT / "conf"
        files = [
            "base.yaml",
            "presets/tiny.yaml",
            f"stages/{stage}.yaml",
            f"recipes/tiny/{stage}.yaml",
        ]
        files.append("data/folder.yaml")
        words = [word for name in files for word in ("--config", str(conf / name))]
        data = [f"--data.shards={shapes_folder / 'train'}", "--data.batch_size=4"]
        main(["fit", *words, "--config", "short.yaml", *data, *flags])
        return tmp_path / "runs" / "tiny" / stage

    return run


@pytest.mark.slow
def test_the_pair_takes_the_place_of_the_tiny_presets_by_flags(fit, files):
    made = [*SWAP, *(f"--model.weights.{n}={getattr(files, n)}" for n in ("encoder", "vae"))]
    decoder = fit("decoder", *made) / "weights.safetensors"
    assert decoder.exists()
    stage2 = fit("stage2", *made, f"--model.weights.decoder={decoder}")
    config = yaml.safe_load((stage2 / "version_0" / "config.yaml").read_text())
    assert config["model"]["encoder"]["class_path"] == "triptych.backbones.Siglip2"
    sheets = sorted(path.name for path in (stage2 / "version_0" / "samples").glob("*.png"))
    assert sheets == ["step-00000000.png", "step-00000001.png"]
    assert (stage2 / "weights.safetensors").exists()

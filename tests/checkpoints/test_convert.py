"""Conversion of published checkpoints to our files and back, on a small one with the true names."""

import json
import os
import pickle
import re
import shutil
from types import SimpleNamespace

import published_release as published
import pytest
import torch
import yaml
from builders import ROOT
from published_release import (
    CASES,
    CONFIG,
    TOWER,
    generator,
    language_model,
    random,
    tower,
    write_checkpoint,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from triptych.checkpoints import read_metadata
from triptych.checkpoints.published.convert import convert
from triptych.checkpoints.published.staging import Staging
from triptych.cli.main import main
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.loading import load_model
from triptych.inference.model_inference import inference_of
from triptych.prompts import SPECIAL_TOKENS
from triptych.utils.errors import UserError


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A published folder that no test changes."""
    return published.released(tmp_path_factory.mktemp("hub") / "release")


@pytest.fixture(scope="module")
def ours(release, tmp_path_factory):
    """Our folder made of it."""
    folder = tmp_path_factory.mktemp("weights") / "small"
    quiet(release, folder)
    return folder


def quiet(source, target, **options):
    """Convert; returns what was said."""
    lines = []
    convert(str(source), target, **options, say=lines.append)
    return "\n".join(lines)


def back(model_file, target, *flags):
    main(["convert", str(model_file), str(target), *flags])


def contents(folder):
    """Every file of a folder by relative name, as bytes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def tensors(folder):
    """All tensors of a folder's safetensors files, by file's folder and name."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        place = str(path.parent.relative_to(folder))
        found |= {(place, name): tensor for name, tensor in load_file(path).items()}
    return found


def same(a, b):
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a
    )


def test_a_release_becomes_four_weight_files_a_tokenizer_and_a_model_file(release, ours):
    labels = ("understanding", "generation", "encoder", "vae", "decoder")
    assert set(contents(ours)) == {
        "model.yaml",
        "tokenizer/chat_template.jinja",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        *(f"{label}.safetensors" for label in labels),
    }
    assert not list(ours.parent.glob("*.partial"))
    before = {name: tensor for (place, name), tensor in tensors(release).items() if place == "."}
    made = load_file(ours / "generation.safetensors")
    assert torch.equal(made["generation.queries"], before["model.latent_queries"][0])
    key = "layers.1.feed_forward.linear_2.weight"
    assert torch.equal(made[f"generation.dit.dit.{key}"], before[f"model.dit.model.{key}"])
    assert made["generation.queries"].dtype == torch.bfloat16
    encoder = load_file(ours / "encoder.safetensors")
    key = "blocks.1.attn.qkv.bias"
    assert torch.equal(encoder[f"encoder.tower.{key}"], before[TOWER + key])
    assert all(name.startswith("encoder.") for name in encoder)
    vae = load_file(ours / "vae.safetensors")
    assert vae and all(name.startswith("vae.") for name in vae)
    assert read_metadata(ours / "decoder.safetensors")["stage"] == "converted"
    assert (ours / "tokenizer" / "tokenizer.json").read_bytes() == (
        release / "tokenizer.json"
    ).read_bytes()


def test_the_model_file_makes_images_and_answers(ours):
    model = load_model([ours / "model.yaml"])
    assert model.encoder.is_built and model.generation.queries.shape == (published.N, published.H)
    generation = model.generation
    assert generation.sampling.integer_timesteps
    assert generation.prompt.template == "published_inference"
    images = inference_of(model).generate(
        ["a red circle"],
        seeds=[0],
        config=GenerationConfig(num_inference_steps=2, decoder_num_inference_steps=1),
    )
    assert images.shape == (1, 3, 16, 16) and images.dtype == torch.uint8
    assert (
        inference_of(model)
        .reconstruct(images, seeds=[0], config=GenerationConfig(decoder_num_inference_steps=1))
        .shape
        == images.shape
    )
    assert len(inference_of(model).answer(None, ["what is it?"], max_new_tokens=2)) == 1


@pytest.mark.parametrize("shards", [1, 3])
def test_there_and_back_gives_the_same_bytes(shards, tmp_path):
    release = published.released(tmp_path / "release", shards)
    quiet(release, tmp_path / "ours")
    back(tmp_path / "ours" / "model.yaml", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(release)


VARIANTS = {
    "without a tower": (language_model() | generator(), {}),
    "a tower with q_bias and v_bias": (language_model() | generator() | tower(TOWER, True), {}),
    "the wide feed-forward": (language_model() | generator(384), {}),
    "a tied head that is absent": (
        language_model(head=False) | generator(),
        {"tie_word_embeddings": True},
    ),
    "transformers' new names": (
        language_model("model.language_model.", "model.visual.") | generator(),
        {},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_known_variant_goes_there_and_back(variant, tmp_path):
    shapes, changes = VARIANTS[variant]
    release = write_checkpoint(tmp_path / "release", random(shapes), {**CONFIG, **changes})
    said = quiet(release, tmp_path / "ours")
    assert ("has no EVA tower" in said) == ("tower" not in variant or "without" in variant)
    assert "no diffusion-decoder" in said
    back(tmp_path / "ours" / "model.yaml", tmp_path / "again")
    assert same(tensors(tmp_path / "again"), tensors(release))
    assert contents(tmp_path / "again").keys() == contents(release).keys()


def test_a_tied_head_that_is_present_stays_in_the_way_back_and_out_of_our_file(tmp_path):
    numbers = random(language_model() | generator())
    numbers["lm_head.weight"] = numbers["model.embed_tokens.weight"].clone()
    tied = {**CONFIG, "tie_word_embeddings": True}
    release = write_checkpoint(tmp_path / "release", numbers, tied)
    quiet(release, tmp_path / "ours")
    assert "understanding.vlm.model.lm_head.weight" not in load_file(
        tmp_path / "ours" / "understanding.safetensors"
    )
    back(tmp_path / "ours" / "model.yaml", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(release)


def test_without_a_tower_a_model_makes_images_and_says_that_it_cannot_reconstruct(tmp_path):
    release = tmp_path / "release"
    write_checkpoint(release, random(language_model() | generator(384)))
    decoder = published.write_decoder(tmp_path / "emu", variant=None)
    quiet(release, tmp_path / "ours", decoder=str(decoder))
    model = load_model([tmp_path / "ours" / "model.yaml"])
    assert model.generation.dit.ffn_width == 384 and not model.encoder.is_built
    images = inference_of(model).generate(
        ["a red circle"],
        seeds=[0],
        config=GenerationConfig(num_inference_steps=1, decoder_num_inference_steps=1),
    )
    with pytest.raises(UserError, match="no weights of its image encoder"):
        inference_of(model).reconstruct(images, seeds=[0])


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("kind", ["bin", "safetensors", "folder"])
def test_a_tower_of_its_own_is_taken_in_every_form(kind, split, tmp_path):
    release = write_checkpoint(tmp_path / "release", random(language_model() | generator()))
    numbers = random(tower("visual." if split else "", split), torch.float16, seed=5)
    path = tmp_path / "eva" / ("model.safetensors" if kind != "bin" else "pytorch_model.bin")
    path.parent.mkdir()
    torch.save(numbers, path) if kind == "bin" else save_file(numbers, path)
    quiet(release, tmp_path / "ours", encoder=str(path.parent if kind == "folder" else path))
    made = load_file(tmp_path / "ours" / "encoder.safetensors")
    bare = {name.removeprefix("visual."): tensor for name, tensor in numbers.items()}
    bias = made["encoder.tower.blocks.0.attn.qkv.bias"]
    assert bias.dtype == torch.float16 and bias.shape == (3 * published.C,)
    if split:
        query, key, value = bias.chunk(3)
        assert torch.equal(query, bare["blocks.0.attn.q_bias"]) and not key.any()
        assert torch.equal(value, bare["blocks.0.attn.v_bias"])
    else:
        assert torch.equal(bias, bare["blocks.0.attn.qkv.bias"])
    assert torch.equal(made["encoder.tower.pos_embed"], bare["pos_embed"])


def stock_tokenizer(folder):
    """A tokenizer of 603 tokens that lacks `[IMG]`, as Qwen's does."""
    words = {f"w{number}": number for number in range(597)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0")
    tokenizer.add_tokens([t for t in SPECIAL_TOKENS if t != "[IMG]"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def stock_config(nested):
    own = {k: v for k, v in CONFIG.items() if not k.startswith(("gen_", "n_query"))}
    own["model_type"] = "qwen2_5_vl"
    if not nested:
        return own
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    text = {k: v for k, v in own.items() if k not in ("vision_config", "rope_scaling")}
    text = {**text, "rope_parameters": rope, "model_type": "qwen2_5_vl_text"}
    return {
        "model_type": "qwen2_5_vl",
        "text_config": text,
        "vision_config": own["vision_config"],
        "tie_word_embeddings": False,
    }


@pytest.mark.parametrize("nested", [False, True])
def test_a_stock_language_model_gets_the_tokens_that_generation_needs(nested, tmp_path):
    names = ("model.language_model.", "model.visual.") if nested else ("model.", "visual.")
    numbers = random(language_model(*names))
    folder = write_checkpoint(tmp_path / "qwen", numbers, stock_config(nested), tokenizer=False)
    known = stock_tokenizer(folder)
    quiet(folder, tmp_path / "ours")
    made = load_file(tmp_path / "ours" / "understanding.safetensors")
    prefix = "understanding.vlm.model."
    table = made[f"{prefix}model.language_model.embed_tokens.weight"]
    old = numbers[f"{names[0]}embed_tokens.weight"]
    assert table.shape == (known + 3, published.H) and table.dtype == torch.bfloat16
    assert torch.equal(table[:known], old[:known])
    mean = old[:known].double().mean(0).to(torch.bfloat16)
    assert all(torch.equal(row, mean) for row in table[known:])
    head = made[f"{prefix}lm_head.weight"]
    assert torch.equal(head, numbers["lm_head.weight"][: known + 3])
    model = load_model(
        [ROOT / "conf/presets/tiny.yaml", tmp_path / "ours" / "model.yaml"],
        ["--model.generation=null", "--model.decoding=null", "--model.encoding=null"]
        + ["--model.encoder=null", "--model.vae=null"]
        + [f"--model.weights.{label}=null" for label in ("generation", "encoder", "decoder")],
    )
    tokenizer = model.understanding.vlm.tokenizer
    assert tokenizer.convert_tokens_to_ids(["[IMG]", "[/IMG]", "<image>"]) == [
        known,
        known + 1,
        known + 2,
    ]


def test_a_model_put_together_here_is_written_as_published_and_read_again(tmp_path, ours):
    """Stock language model, tower and decoder; the generation panel comes from elsewhere."""
    folder = write_checkpoint(
        tmp_path / "qwen", random(language_model(head=False)), stock_config(False), tokenizer=False
    )
    config = {**stock_config(False), "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    stock_tokenizer(folder)
    eva = tmp_path / "eva.safetensors"
    save_file(random(tower()), eva)
    decoder = published.write_decoder(tmp_path / "emu")
    with pytest.raises(UserError, match="56 features and the model 1792"):
        quiet(folder, tmp_path / "mixed", encoder=str(eva), decoder=str(decoder))
    quiet(folder, tmp_path / "mixed", decoder=str(decoder))
    configs = [ours / "model.yaml", tmp_path / "mixed" / "model.yaml"]
    whole = tmp_path / "whole.yaml"
    first, second = (yaml.safe_load(path.read_text())["model"] for path in configs)
    weights = first["weights"] | second["weights"]
    whole.write_text(yaml.safe_dump({"model": {**first, **second, "weights": weights}}))
    back(whole, tmp_path / "written")
    config = json.loads((tmp_path / "written" / "config.json").read_text())
    assert config["model_type"] == "blip3o_qwen_inference" and config["n_query"] == published.N
    assert config["vocab_size"] == 606 and config["gen_pooling"] == "early_pool2d_2"
    quiet(tmp_path / "written", tmp_path / "again")
    for label in ("understanding", "generation", "decoder"):
        made = load_file(tmp_path / "again" / f"{label}.safetensors")
        assert same(made, load_file(weights[label]))


def test_convert_a_decoder_without_the_other_parts(tmp_path, ours):
    folder = published.write_decoder(tmp_path / "emu", variant=None)
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"beta_start": 0.00085, "timestep_spacing": "trailing"})
    )
    said = quiet(folder, tmp_path / "ours")
    assert "'timestep_spacing': 'trailing'" in said
    assert set(contents(tmp_path / "ours")) == {
        "model.yaml",
        "decoder.safetensors",
        "vae.safetensors",
    }
    assert same(
        load_file(tmp_path / "ours" / "decoder.safetensors"),
        load_file(ours / "decoder.safetensors"),
    )


def test_convert_prefers_the_decoder_variant_of_the_published_code(tmp_path):
    folder = published.write_decoder(tmp_path / "emu")
    published.write_decoder(tmp_path / "emu", variant=None)
    other = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({n: t + 1 for n, t in load_file(other).items()}, other)
    quiet(folder, tmp_path / "ours")
    bf16 = load_file(folder / "unet" / "diffusion_pytorch_model.bf16.safetensors")
    made = load_file(tmp_path / "ours" / "decoder.safetensors")
    name = "conv_in.weight"
    assert torch.equal(made[f"decoding.decoder.unet.{name}"], bf16[name])


# Interruption -------------------------------------------------------------------------------------


def test_interrupted_conversion_resumes_without_rewriting_finished_files(release, tmp_path):
    target, work = tmp_path / "ours", tmp_path / "ours.partial"

    def stop(line):
        if "encoder.safetensors" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(str(release), target, say=stop)
    assert not target.exists()
    finished = {path.stem for path in work.glob("*.safetensors")}
    assert finished == {"understanding", "encoder"}
    (work / "decoder.safetensors.partial").write_bytes(b"half")
    (work / "encoder.safetensors").write_bytes(b"spoilt")
    before = (work / "understanding.safetensors").stat()
    said = quiet(release, target)
    after = (target / "understanding.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert said.count(", kept") == 1
    assert not work.exists() and not list(target.glob("*.partial"))
    quiet(release, tmp_path / "whole")
    assert same(tensors(target), tensors(tmp_path / "whole"))


def test_ctrl_c_is_one_sentence(release, tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Staging, "finish", stop)  # all files are written
        with pytest.raises(SystemExit) as ended:
            main(["convert", str(release), str(tmp_path / "ours")])
    said = capsys.readouterr()
    assert ended.value.code == 130 and said.out.count(" GB") == said.out.count("\n") == 5
    assert said.err == "triptych: interrupted; the same command resumes where it stopped.\n"
    main(["convert", str(release), str(tmp_path / "ours")])
    assert capsys.readouterr().out.count(", kept") == 5


def test_another_conversion_starts_over(release, tmp_path):
    target = tmp_path / "ours"

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(str(release), target, say=stop)
    assert (tmp_path / "ours.partial").exists()
    config = {**CONFIG, "rope_theta": 5e5}
    other = write_checkpoint(tmp_path / "b", random(language_model() | generator()), config)
    assert "kept" not in quiet(other, target)


def test_a_folder_in_the_way_is_not_deleted(release, tmp_path):
    mine = tmp_path / "ours.partial" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match="not ours to delete"):
        quiet(release, tmp_path / "ours")
    assert mine.read_text() == "mine"


# Bad input ----------------------------------------------------------------------------------------


class Code:
    """Pickles as a call."""

    def __reduce__(self):
        return (os.getcwd, ())


def lose_a_shard(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()


def cut_a_shard(folder):
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_a_header(folder):
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def no_safetensors(folder):
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"version https://git-lfs" * 9)


def climb_out(folder):
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-00002", "../model-00002"))


def change_config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def drop_config_size(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["rms_norm_eps"]
    (folder / "config.json").write_text(json.dumps(config))


def without(*ends):
    def change(folder):
        for path in folder.glob("*.safetensors"):
            kept = {n: t for n, t in load_file(path).items() if not n.endswith(ends)}
            save_file(kept, path)
        index = folder / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"] = {
            n: f for n, f in content["weight_map"].items() if not n.endswith(ends)
        }
        index.write_text(json.dumps(content))

    return change


def add_tensors(folder):
    path = folder / "model-00002-of-00003.safetensors"
    extra = {f"model.mm_projector.{n}.weight": torch.zeros(2) for n in range(4)}
    save_file(load_file(path) | extra, path)


def untie(folder):
    change_config(tie_word_embeddings=True)(folder)


def other_tokenizer(folder):
    (folder / "tokenizer_config.json").unlink()
    stock_tokenizer(folder)


BAD = [
    (lose_a_shard, "names model-00002-of-00003.safetensors, which is not there; download"),
    (cut_a_shard, r"model-00002-of-00003.safetensors is cut off: .* bytes and it has"),
    (cut_a_header, "model-00002-of-00003.safetensors is cut off inside its header"),
    (no_safetensors, "model-00002-of-00003.safetensors is no safetensors file"),
    (climb_out, "outside of its folder"),
    (
        change_config(model_type="llama", gen_vision_tower=None),
        "config.json is of a llama model; what can be converted",
    ),
    (change_config(model_type="qwen2"), "config.json is of a qwen2 model"),
    (
        change_config(model_type="blip3o_llama"),
        "is a BLIP3-o on Llama .* take a checkpoint on Qwen",
    ),
    (
        change_config(hidden_size=128),
        r"\d\d tensors .*model.embed_tokens.weight \[700, 64\] instead",
    ),
    (change_config(num_hidden_layers=3), r"12 tensors \(model.layers.2.input_layernorm.weight.*"),
    (change_config(gen_pooling="early_attn"), "gen_pooling is 'early_attn'"),
    (drop_config_size, "config.json lacks 'rms_norm_eps'"),
    (
        without("attn1.norm_q.bias"),
        r"2 tensors \(model.dit.model.layers.0.attn1.norm_q.bias, .* miss",
    ),
    (without("patch_embedder.proj.weight"), "lacks model.dit.model.patch_embedder.proj.weight"),
    (add_tensors, r"4 tensors \(model.mm_projector.0.weight, .*, \.\.\.\) unexpected"),
    (untie, "ties lm_head.weight to the embeddings, but the two differ"),
    (other_tokenizer, r"has no token '\[IMG\]'"),
]


def refused(capsys, target, *arguments):
    """The one sentence of a conversion that fails with status 1 and leaves nothing."""
    with pytest.raises(SystemExit) as stopped:
        main(["convert", *(str(argument) for argument in arguments)])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 1 and line.startswith("triptych: ")
    assert not target.exists() and not target.with_name(target.name + ".partial").exists()
    return line


@pytest.mark.parametrize(("spoil", "says"), BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(spoil, says, release, tmp_path, capsys):
    spoilt = shutil.copytree(release, tmp_path / "spoilt")
    spoil(spoilt)
    line = refused(capsys, tmp_path / "ours", spoilt, tmp_path / "ours")
    assert re.search(says, line), line


def test_a_pickle_with_code_is_not_opened(release, tmp_path, capsys):
    path = tmp_path / "eva.bin"
    torch.save({"cls_token": Code()}, path)
    target = tmp_path / "ours"
    line = refused(capsys, target, release, target, "--encoder", path)
    assert f"{path} holds more than tensors, maybe code" in line and "safetensors" in line
    path.write_bytes(pickle.dumps({"cls_token": Code()}))
    assert str(path) in refused(capsys, target, release, target, "--encoder", path)
    path.write_bytes(b"cut")
    assert str(path) in refused(capsys, target, release, target, "--encoder", path)


def test_source_must_be_a_folder_or_hub_id(tmp_path, capsys):
    target = tmp_path / "ours"
    line = refused(capsys, target, tmp_path / "nowhere", target)
    assert "nowhere does not exist and is no hub id" in line
    line = refused(capsys, target, "BLIP3o/BLIP3o-Model-4B", target)  # tests have no network
    assert "could not be downloaded" in line and "name the folder" in line


def test_existing_target_is_not_overwritten(release, tmp_path, capsys):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(release), str(tmp_path / "ours")])
    assert stopped.value.code == 1 and "exists already" in capsys.readouterr().err
    assert contents(tmp_path / "ours") == {"mine.txt": b"mine"}


def test_a_full_disk_is_noticed_before_anything_is_written(release, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="GB left and this takes"):
        quiet(release, tmp_path / "ours")
    assert not list(tmp_path.iterdir())


def test_weights_of_another_preset_are_refused_on_the_way_back(ours, tmp_path, capsys):
    flag = "--model.generation.init_args.num_queries=5"
    target = tmp_path / "again"
    line = refused(capsys, target, ours / "model.yaml", target, flag)
    assert "1 tensor (generation.queries) of other sizes" in line


def test_export_refuses_register_queries(ours, tmp_path, capsys):
    flag = "--model.generation.init_args.num_registers=1"
    line = refused(capsys, tmp_path / "again", ours / "model.yaml", tmp_path / "again", flag)
    assert "register queries (num_registers)" in line


def test_export_refuses_models_without_a_published_layout(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = refused(capsys, tmp_path / "out", "conf/presets/tiny.yaml", tmp_path / "out")
    assert "that the published one lacks" in line


def test_a_missing_weight_file_says_that_convert_makes_it(ours, tmp_path):
    with pytest.raises(UserError, match=r"`triptych convert CHECKPOINT .*x` makes it .*stage1"):
        load_model(
            [ours / "model.yaml"],
            [f"--model.weights.understanding={tmp_path / 'x' / 'understanding.safetensors'}"],
        )


# Recorded weights of the published code -----------------------------------------------------------


def test_the_recorded_checkpoint_goes_there_and_back(tmp_path):
    case = CASES / "tiny_model"
    numbers = load_file(case / "weights.safetensors")
    numbers |= load_file(case / "gen_vision_tower.safetensors")
    config = json.loads((case / "case.json").read_text())["config_llm"]
    shape = (config["vocab_size"], config["hidden_size"])
    numbers |= random({"model.embed_tokens.weight": shape, "lm_head.weight": shape}, torch.float32)
    release = write_checkpoint(tmp_path / "release", numbers, config, tokenizer=False)
    said = quiet(release, tmp_path / "ours")
    assert "has no tokenizer files" in said
    back(tmp_path / "ours" / "model.yaml", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(release)

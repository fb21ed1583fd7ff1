"""Judges of the libraries with small random weights: shapes of inputs and outputs."""

import json
from importlib.resources import files

import pytest
import torch
from PIL import Image

from triptych.evaluation.geneval.colours import COLOURS, ClipColours
from triptych.evaluation.judges.base import AnswerCache
from triptych.evaluation.judges.local import QwenJudge

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A Qwen2.5-VL of two narrow layers with the tiny preset's tokenizer, as a folder."""
    from transformers import (
        AutoTokenizer,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = AutoTokenizer.from_pretrained(str(files("triptych") / "assets/tiny/tokenizer"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|video_pad|>"]})
    ids = {
        f"{kind}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for kind, name in {
            "image": "image_pad",
            "video": "video_pad",
            "vision_start": "vision_start",
            "vision_end": "vision_end",
        }.items()
    }
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "rope_parameters": ROPE,
            "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
            "out_hidden_size": 32, "fullatt_block_indexes": [0], "window_size": 28,
        },
        **ids,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:  # far larger than as it begins: its answers then hang on its input
                weight.normal_(std=0.3)
    model.save_pretrained(folder)
    sides = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=sides), tokenizer, Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_qwen_answers_do_not_depend_on_the_batch(qwen):
    judge = QwenJudge(qwen, max_new_tokens=4, batch=3)
    red, blue = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    asked = [(red, "Is it red? Answer with yes or no."), (blue, "Red?"), (red, "Red?")]
    together = AnswerCache().ask(judge, asked)
    assert together == [judge.answer(*question) for question in asked]
    assert len(set(together)) == 3
    assert "Red?" not in "".join(together)  # the new tokens alone


def test_clip_chooses_the_colour_of_the_nearest_sentences(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{each}</w>" for each in letters)]
    (tmp_path / "vocab.json").write_text(json.dumps({t: n for n, t in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer.save_pretrained(tmp_path)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    size |= {"num_attention_heads": 1, "projection_dim": 8}
    config = CLIPConfig(
        text_config=size | {"vocab_size": len(tokens), "bos_token_id": 0, "eos_token_id": 1},
        vision_config=size | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    side = {"shortest_edge": 16}
    processor = CLIPImageProcessor(size=side, crop_size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path)

    crops = [Image.new("RGB", (9, 20), colour) for colour in ("red", "white", "black")]
    colours = ClipColours(tmp_path)
    given = colours.classify(crops, "cat")
    assert given == colours.classify(crops, "cat") and set(given) <= set(COLOURS)
    # by hand, a crop at a time, from the whole model
    for crop, colour in zip(crops, given, strict=True):
        with torch.no_grad():
            image = model.get_image_features(**processor(images=crop, return_tensors="pt"))
            texts = [
                tokenizer(f"a photo of a {each}{end}", return_tensors="pt")
                for each in COLOURS
                for end in (" cat", "-colored cat", " object")
            ]
            text = torch.cat([_vector(model.get_text_features(**each)) for each in texts])
        unit = text / text.norm(dim=-1, keepdim=True)
        likeness = unit.view(len(COLOURS), 3, -1).mean(1)
        likeness = likeness / likeness.norm(dim=-1, keepdim=True) @ _vector(image)[0]
        assert COLOURS[likeness.argmax()] == colour


def _vector(features):
    """Vectors of CLIP, which transformers returns by themselves before version 5."""
    return features if isinstance(features, torch.Tensor) else features.pooler_output

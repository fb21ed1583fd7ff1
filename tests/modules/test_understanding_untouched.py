"""With a frozen language model, training generation changes no answer by a single token."""

import json

import pytest
import torch
from builders import CAPTIONS, SIDE, batches, steps, unified, vlm
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from triptych.backbones import QwenText, QwenVision
from triptych.checkpoints import WeightFiles, save_weights
from triptych.checkpoints.published import key_mapping
from triptych.evaluation.parity.loading import map_keys
from triptych.inference.model_inference import inference_of
from triptych.interfaces import TEXT_TO_IMAGE
from triptych.prompts import PAD, conversation_ids, pad, token_id

QUESTIONS = ["what colour is it?", "how many shapes are there in this image?", "where?"]
NEW_TOKENS = 12
DIFFERENT = {"initializer_range": 0.3}  # wide enough for answers that are not one token repeated


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Folder of a stock Qwen2.5-VL of random weights, as transformers saves it."""
    folder = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(3)
    config = vlm(**DIFFERENT).config()
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(stock, weights, samples, tmp_path_factory):
    """Our model from the stock weights, after stage 2 has trained for some steps."""
    ours = tmp_path_factory.mktemp("ours") / "understanding.safetensors"
    tensors = map_keys(load_file(stock / "model.safetensors"))
    save_weights(tensors, ours, {}, torch.float32)
    files = WeightFiles(**{**vars(weights), "understanding": str(ours)})
    model = unified("stage2", weights=files)
    model.configure_model()
    before = model.generation.queries.detach().clone()
    steps(model.train(), batches(model, samples, TEXT_TO_IMAGE), 5, lr=1e-2)
    assert not torch.equal(model.generation.queries, before)
    return model.eval()


def test_config_json_says_the_sizes_that_we_built(stock):
    config = json.loads((stock / "config.json").read_text())
    ours = vlm(rms_norm_eps=1e-5)
    text = QwenText(**key_mapping.text_arguments(config), initializer_range=0.06)
    assert text == ours.text
    assert QwenVision(**key_mapping.vision_arguments(config)) == ours.vision


def test_weights_are_untouched_bit_for_bit(stock, trained):
    theirs = map_keys(load_file(stock / "model.safetensors"))
    ours = dict(trained.named_parameters())
    assert len(theirs) > 40
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("seen", [True, False])
def test_answers_are_stock_qwens_token_for_token(seen, stock, trained):
    qwen = Qwen2_5_VLForConditionalGeneration.from_pretrained(stock).eval()
    ours = trained.understanding.vlm
    tokenizer, image_tokens = ours.tokenizer, ours.image_tokens() if seen else 0
    images = torch.randint(0, 256, (3, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    inference_of(trained).generate(
        CAPTIONS, seeds=[0, 1, 2]
    )  # whatever generation leaves behind is not heard of
    answers = []
    for number, question in enumerate(QUESTIONS):
        row, _ = conversation_ids(tokenizer, [(question, None)], 256, image_tokens)
        ids, mask = pad([row], token_id(tokenizer, PAD), left=True)
        shown = ours.image_inputs(images[number : number + 1]) if seen else (None, None)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if seen:
            types = (ids == qwen.config.image_token_id).int()
            inputs |= {"pixel_values": shown[0], "image_grid_thw": shown[1]}
            inputs |= {"mm_token_type_ids": types}
        expected = qwen.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        answer = ours.generate_text(ids, mask, *shown, max_new_tokens=NEW_TOKENS)
        assert torch.equal(answer, expected[:, ids.shape[1] :])
        answers.append(answer[0].tolist())
    assert answers[0] != answers[1] != answers[2]
    assert max(len(set(answer)) for answer in answers) > 3

"""Cost of stories: formulas against torch's counter over real batches, and what a plan expects."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cuda.model import place, stage_model
from torch.nn.attention import SDPBackend, sdpa_kernel

from triptych.cli.plan.cost import generation_flops, stage_flops, understanding_flops
from triptych.cli.plan.fit import stories_share
from triptych.cli.plan.request import read_request
from triptych.conversations import message_ids
from triptych.data_modules import Collator, ShapesDataModule, ShardFolder, TaskDataset
from triptych.interfaces import (
    IMAGE_TO_TEXT,
    INTERLEAVED,
    INTERLEAVED_IMAGES,
    TEXT_TO_IMAGE,
    Batch,
)
from triptych.shapes_world.shards import ensure_stories
from triptych.shapes_world.stories import messages_of, sample_story
from triptych.training.flop_counter import count_flops
from triptych.training.gpu_specs import gpu_of
from triptych.training.prompt_counts import (
    STORY_ANSWER_TOKENS,
    STORY_IMAGES,
    STORY_TOKENS,
    PromptCounts,
    generation_counts,
    understanding_counts,
)
from triptych.training.synthetic_batches import stage_batches
from triptych.utils.errors import UserError


@pytest.fixture(scope="module")
def stories_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stories")
    ensure_stories(folder, train=6, seed=0)
    return folder / "train"


def trained(stage, *flags):
    """A stage of the tiny preset without repeated noise, on the CPU."""
    model = place(stage_model("tiny", stage, "--model.build_decoder=false", *flags), "cpu").train()
    if model.generation is not None:
        model.generation.flow = replace(model.generation.flow, num_noise_samples=1)
    return model


def real_batch(model, folder, captions, tasks) -> Batch:
    """Three stories and a caption."""
    datasets = [
        TaskDataset(ShardFolder(path).open(), task)
        for path, task in zip((folder, captions), tasks, strict=True)
    ]
    batch = Collator(datasets, model.preprocessing())(0, [(0, 0), (0, 1), (1, 0), (0, 2)], range(4))
    assert not batch.dropped_samples
    batch.num_shared_prefix_tokens = 0  # not known before there is data
    return batch


def counted(model, batch):
    with sdpa_kernel(SDPBackend.MATH):  # torch 2.11 counts no fused attention of the processor
        return count_flops(lambda: model.step(batch)[0].backward())


@pytest.mark.parametrize(("stage", "source"), [("edits", "tokens"), ("joint", "none")])
def test_images_of_stories_are_counted(stage, source, stories_folder, shapes_folder):
    model = trained(stage, f"--model.generation.init_args.dit.init_args.source={source}")
    tasks = INTERLEAVED_IMAGES, TEXT_TO_IMAGE
    batch = real_batch(model, stories_folder, shapes_folder / "eval", tasks)
    counts = PromptCounts.of(batch)
    assert counts.made > 1.5 and counts.shown == counts.made - 1 and counts.groups > 2
    assert counts.sources == (counts.shown if source != "none" else 0)
    found = counted(model, batch)
    assert 4 * generation_flops(model, counts)[1] == pytest.approx(found, rel=0.02)


def test_answers_of_stories_are_counted(stories_folder, shapes_folder):
    model = trained("stage1")
    tasks = INTERLEAVED, IMAGE_TO_TEXT
    batch = real_batch(model, stories_folder, shapes_folder / "eval", tasks)
    counts = PromptCounts.of(batch)
    assert counts.shown > 1.5 and counts.learned > 5
    assert 4 * understanding_flops(model, counts) == pytest.approx(counted(model, batch), rel=0.02)


@pytest.mark.parametrize("stage", ["edits", "joint"])
def test_a_planned_step_with_stories_is_the_one_that_is_counted(stage):
    """The batches whose memory is counted have the images and tokens that the FLOPs are of."""
    model = trained(stage)
    batches = stage_batches(model, 8, edits=stage == "edits", stories=0.25)
    wanted = {
        "image_generation": generation_counts(model, stage == "edits", 0.25),
        "language_modeling": understanding_counts(model, 0.25),
    }
    for objective, batch in batches.items():
        assert asdict(PromptCounts.of(batch)) == pytest.approx(asdict(wanted[objective]), rel=0.01)
    found = sum(counted(model, batch) for batch in batches.values())
    live = stage_flops(model, stage == "edits", 0.25)[1]
    assert 8 * live == pytest.approx(found, rel=0.02)


def test_stories_cost_more():
    model = trained("edits")
    without, some, more = (stage_flops(model, True, share)[0] for share in (0.0, 0.2, 0.6))
    assert 1.2 * without < some < more


def test_stories_of_the_shapes_world_are_as_expected(tokenizer):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(60):
        talk, images = [], 0
        for message in messages_of(sample_story(rng)):
            content = message["content"]
            parts = content if isinstance(content, list) else [content]
            images += sum(isinstance(part, dict) for part in parts)
            talk.append((message["role"], [1 if isinstance(p, dict) else p for p in parts]))
        ids, labels = message_ids(tokenizer, talk)
        rows.append((images, len(ids) - images, sum(label >= 0 for label in labels)))
    images, tokens, learned = np.mean(rows, 0)
    assert images == pytest.approx(STORY_IMAGES, abs=0.3)
    assert tokens == pytest.approx(STORY_TOKENS, rel=0.1)
    assert learned == pytest.approx(STORY_ANSWER_TOKENS, abs=2)


def requested(stage, **options):
    return read_request("tiny", stage, "single", devices=1, gpu=gpu_of("h100"), **options)


def test_a_plan_takes_the_share_of_the_stages_own_data():
    assert requested("stage1").stories == 0.25
    assert requested("edits").stories == 0.25
    asked = requested("stage2", stories=0.5)
    assert asked.stories == 0.5 and asked.contents.shows_images and asked.contents.has_sources
    with pytest.raises(UserError, match="'decoder' reads no conversations"):
        requested("decoder", stories=0.5)


def test_a_fit_is_planned_with_the_share_of_its_data():
    data = ShapesDataModule(stories_ratio=0.25, tasks=["text_to_image"])
    data.task_datasets = {"image_generation": []}
    assert stories_share(data) == 0.25
    assert stories_share(SimpleNamespace(batch_size=4)) == 0.0

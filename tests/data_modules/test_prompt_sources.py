"""Prompts without images: where they come from, and how long a run stays with them."""

import json

import pytest
from builders import unified

from triptych.data_modules import BadSample, Collator, PromptFile, ShapesPrompts, TaskDataset
from triptych.data_modules.sampling.batch_sampler import GlobalBatchSampler
from triptych.data_modules.sampling.mixing import Mixture
from triptych.data_modules.sampling.step_dataset import StepDataset
from triptych.data_modules.sources.prompts import EVALUATED
from triptych.evaluation.shapes.shape_eval import examples
from triptych.interfaces import TEXT_TO_IMAGE, TEXT_TO_REWARD, RewardSample
from triptych.shapes_world.captions import asks_held_out, is_evaluation, parse
from triptych.utils.errors import UserError


def test_lines_and_json_lines(tmp_path):
    (tmp_path / "plain.txt").write_text("a cat\n\ntwo dogs\n")
    plain = PromptFile(tmp_path / "plain.txt").open()
    assert [plain.caption(n) for n in range(len(plain))] == ["a cat", "two dogs"]
    assert [plain.key(n) for n in range(2)] == ["0", "1"] and not plain.has_image(0, "image")
    rows = [{"prompt": "a cat", "key": "one", "tag": "x"}, {"caption": "two dogs"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = PromptFile(tmp_path / "rows.jsonl").open().open()
    assert [table.caption(n) for n in range(len(table))] == ["a cat", "two dogs"]
    assert table.key(0) == "one" and table.metadata(0) == rows[0]
    with pytest.raises(BadSample, match="prompts alone"):
        table.image_bytes(0)


@pytest.mark.parametrize(
    "name,content,said",
    [
        ("empty.txt", "\n", "empty.txt holds no prompt"),
        ("none.jsonl", '{"text_": "a"}\n', 'line 1.* has no text "prompt"|has no text "prompt"'),
        ("number.jsonl", '{"prompt": 3}\n', 'has no text "prompt"'),
        ("table.csv", "prompt\na\n", "is a .csv file"),
        (None, "", "does not exist|No such file"),
    ],
)
def test_a_file_without_prompts_is_named(name, content, said, tmp_path):
    path = tmp_path / (name or "missing.txt")
    if name:
        path.write_text(content)
    with pytest.raises(UserError, match=said):
        PromptFile(path).open()


def test_captions_of_the_shapes_world_are_none_of_evaluation():
    unseen, train = ShapesPrompts("unseen", 400), ShapesPrompts("train", 400)
    requests = [parse(unseen.caption(n)) for n in range(len(unseen))]
    assert all(asks_held_out(request) for request in requests)
    kept = {sample.request for sample in examples("unseen", EVALUATED)}
    assert not kept & set(requests)
    learned = [parse(train.caption(n)) for n in range(len(train))]
    assert not any(asks_held_out(each) or is_evaluation(each) for each in learned)
    assert len({unseen.caption(n) for n in range(400)}) > 200
    assert unseen.caption(7) == ShapesPrompts("unseen", 9).caption(7)
    assert unseen.caption(7) != ShapesPrompts("unseen", 9, seed=1).caption(7)
    with pytest.raises(UserError, match="splits train, pairs, unseen, and none is 'eval'"):
        ShapesPrompts("eval")


def test_pairs_say_both_sizes_and_are_none_of_evaluation():
    pairs = ShapesPrompts("pairs", 100)
    requests = [parse(pairs.caption(number)) for number in range(len(pairs))]
    assert {len(request.wanted) for request in requests} == {2}
    assert {wanted.size for request in requests for wanted in request.wanted} == {"small", "large"}
    assert not any(is_evaluation(request) for request in requests)


@pytest.fixture(scope="module")
def processor():
    return unified("inference").preprocessing()


def test_a_batch_says_what_its_images_are_for(processor, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a red circle", "key": "one", "tag": "x"}\n')
    dataset = TaskDataset(PromptFile(tmp_path / "rows.jsonl").open(), TEXT_TO_REWARD)
    batch = Collator([dataset], processor)(0, [(0, 0)], [5])
    facts = {"prompt": "a red circle", "key": "one", "tag": "x"}
    assert batch.reward_samples == [RewardSample("a red circle", "one", facts)]
    assert batch.target_pixels is None and batch.labels is None and batch.repetition == 0
    assert len(batch) == batch.elements == 1
    with pytest.raises(UserError, match="different losses"):
        Collator([dataset, TaskDataset(dataset.source, TEXT_TO_IMAGE)], processor)


def test_steps_stay_with_a_batch(processor):
    dataset = TaskDataset(ShapesPrompts(number=12), TEXT_TO_REWARD)
    sampler = GlobalBatchSampler([dataset.source], Mixture({"all": 1}), 4)
    collate = Collator([dataset], processor)
    one, three = StepDataset(collate, sampler), StepDataset(collate, sampler, steps_per_batch=3)
    assert [three[step].keys for step in range(9)] == [one[step // 3].keys for step in range(9)]
    assert [three[step].repetition for step in range(6)] == [0, 1, 2, 0, 1, 2]
    assert three[4].sample_ids.tolist() == three[5].sample_ids.tolist() == [4, 5, 6, 7]
    assert three[5].step == 5 and three[5].epochs == one[1].epochs

"""A reward from a user's folder, on prompts of a file, from the real command line."""

import json

import pytest

MY_PACKAGE = '''
import torch

from triptych.interfaces import Reward


class Redness(Reward):
    """Redder than green and blue."""

    name = "redness"

    def __call__(self, images, samples):
        assert all(sample.facts["prompt"] == sample.prompt for sample in samples)
        red, others = images[:, 0].float(), images[:, 1:].float()
        return red.mean((1, 2)) / 255 - others.mean((1, 2, 3)) / 255


class Broken(Reward):
    name = "broken"

    def __call__(self, images, samples):
        return torch.full((len(images),), float("nan"))
'''
FIT = ("fit", "--preset", "tiny", "--stage", "rl", "--data=PromptDataModule")
SETTINGS = (
    "--data.prompts=prompts.jsonl",
    *("--data.batch_size=2", "--trainer.max_steps=4", "--trainer.val_check_interval=4"),
    "--model.reward_tuning.init_args.group_size=2",
)


@pytest.mark.slow
def test_a_reward_of_ones_own(forks, tmp_path):
    (tmp_path / "my_package.py").write_text(MY_PACKAGE)
    prompts = [{"prompt": prompt} for prompt in ("a red circle", "two blue squares", "a cat")]
    lines = "".join(json.dumps(each) + "\n" for each in prompts)
    (tmp_path / "prompts.jsonl").write_text(lines)
    arguments = (*FIT, *SETTINGS)
    rewards = ("my_package.Redness", "my_package.Broken", "my_package.Missing")
    good, broken, missing = forks.together(
        tmp_path, *((*arguments, f"--model.reward={reward}") for reward in rewards)
    )
    assert good[0] == 0, good[1]
    run = tmp_path / "runs" / "tiny" / "rl"
    found = [path.parent for path in run.glob("version_*/weights.safetensors")]
    assert len(found) == 1 and (found[0] / "samples" / "step-00000004.png").is_file()
    assert "val/reward" in (found[0] / "metrics.csv").read_text().splitlines()[0]
    assert broken[0] == 1 and "the reward 'broken' returned nan for an image of " in broken[1]
    assert missing[0] != 0 and "module 'my_package' has no attribute 'Missing'" in missing[1]
    assert not any("Traceback" in output for _, output in (good, broken, missing))

"""From votes to weights by the real command line: pairs made again, and a run that learns."""

import json

import pytest

FEW = {"num_inference_steps": 1, "decoder_num_inference_steps": 1}
FIT = ("fit", "--preset", "tiny", "--stage", "preferences", "--data-dir", "pairs")


@pytest.mark.slow
def test_votes_become_pairs_and_pairs_train(forks, tmp_path):
    sides = {
        side: {"model": "tiny", **FEW, "guidance_scale": scale}
        for side, scale in (("a", 1), ("b", 3))
    }
    votes = [
        {
            "trial": f"t{n}",
            "prompt": prompt,
            "seed": n,
            "criterion": "overall",
            **sides,
            "vote": "b",
        }
        for n, prompt in enumerate(("a red circle", "two blue squares", "a green cross"))
    ]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(each) + "\n" for each in votes))
    status, said = forks(tmp_path, "data", "votes", "votes.jsonl", "--out", "pairs")
    assert status == 0 and "3 pairs of 3 votes: pairs" in said, said
    flags = ("--data.batch_size=2", "--trainer.max_steps=2", "--trainer.val_check_interval=2")
    status, said = forks(tmp_path, *FIT, *flags)
    assert status == 0, said
    (run,) = (tmp_path / "runs" / "tiny" / "preferences").glob("version_*")
    assert (run / "weights.safetensors").is_file()
    assert (run / "samples" / "step-00000002.png").is_file()
    assert "val/accuracy" in (run / "metrics.csv").read_text().splitlines()[0]
    status, said = forks(tmp_path, "generate", "a red circle", "--from", str(run), "-o", "out")
    assert status == 0, said
    status, said = forks(tmp_path, *FIT[:-2], *flags)
    assert status == 1 and "data/preferences" in said and "Traceback" not in said

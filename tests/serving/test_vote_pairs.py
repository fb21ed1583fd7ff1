"""Pairs from votes: which, by which settings, resumed, and the images that were voted on."""

import json
from pathlib import Path

import numpy
import pytest
from preference_models import Drawer, captions, votes

from triptych.data_modules import ShardFolder
from triptych.inference.generation_config import GenerationConfig
from triptych.serving.webui.pairs import pairs_of, write_pairs
from triptych.serving.webui.votes import Vote, Votes
from triptych.utils.errors import UserError


def test_a_vote_for_either_side_is_a_pair():
    found = votes(captions(4))
    found[1]["vote"], found[2]["criterion"] = "tie", "visual quality"
    first, last = pairs_of(found, "overall")
    assert (first.chosen.model, first.rejected.model) == ("right", "wrong")
    assert last.chosen.model == "right" and last.chosen.seed == last.rejected.seed == 3
    assert first.chosen.settings == {"num_inference_steps": 2}  # no version, no model
    assert len({first.chosen.file, first.rejected.file, last.chosen.file, last.rejected.file}) == 4


def test_an_interrupted_call_goes_on_and_holds_one_model_at_a_time(tmp_path):
    prompts = captions(3)
    pairs, made = pairs_of(votes(prompts), "overall"), {}

    def load(name):
        if name == "wrong" and len(made) < 2:
            made["interrupted"] = True
            raise KeyboardInterrupt
        made[name] = Drawer(name, prompts)
        return made[name]

    with pytest.raises(KeyboardInterrupt):
        write_pairs(pairs, tmp_path / "pairs", load)
    assert not (tmp_path / "pairs").exists() and made["right"].calls == 3
    done = []
    write_pairs(pairs, tmp_path / "pairs", load, done.append)
    assert done == [1, 2, 3, 4, 5, 6] and made["wrong"].calls == 3 and made["right"].calls == 3
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]
    with pytest.raises(UserError, match="pairs is not empty; name another folder"):
        write_pairs(pairs, tmp_path / "pairs", load)


def test_the_images_are_those_that_were_voted_on(triptych, pipe, tmp_path):
    kept, file = {}, Votes(tmp_path / "votes.jsonl")
    for number, steps in enumerate((2, 3)):
        sides = {}
        for side in ("a", "b"):
            options = {
                "num_inference_steps": steps + (side == "b"),
                "guidance_interval": (0.1, 0.9),
            }
            options["decoder_num_inference_steps"] = 1
            output = pipe("a red circle", seed=number, **options)
            kept[number, side] = numpy.asarray(output.images[0])
            hidden = ("prompt", "seed")
            sides[side] = {k: v for k, v in output.metadata[0].items() if k not in hidden}
            sides[side]["model"] = "tiny (EMA)"
        vote = Vote(
            f"t{number}", "a red circle", number, "overall", **sides, left="a", vote="b", viewer=""
        )
        file.record(vote)
    status, out, err = triptych(
        "data", "votes", "votes.jsonl", "--out", "pairs", "--model", "tiny (EMA)=x"
    )
    assert status == 0 and out == "2 pairs of 2 votes: pairs\n", err
    ((source,), options), *others = triptych.loaded
    assert source == "x" and options["ema"] and not others
    shards = ShardFolder("pairs").open()
    assert len(shards) == 2 and not Path("pairs.images").exists()
    for number in range(2):
        assert (numpy.asarray(shards.image(number)) == kept[number, "b"]).all()
        assert shards.metadata(number)["rejected"] == "rejected.png"
        assert shards.caption(number) == "a red circle"
        assert shards.named_image_bytes(number, "rejected.png")


def test_weights_that_were_not_voted_on_are_refused(pipe, tmp_path):
    found = votes(captions(1), "tiny", "tiny")
    few = {"num_inference_steps": 1, "decoder_num_inference_steps": 1}
    for side in ("a", "b"):
        found[0][side] |= few | {"weights": "of another day"}
    with pytest.raises(UserError, match="tiny has other weights now than when it was voted on"):
        write_pairs(pairs_of(found, "overall"), tmp_path / "pairs", lambda name: pipe)
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize(
    "line,arguments,said",
    [
        (None, [], "there is no file of votes at votes.jsonl"),
        ({"trial": "t", "criterion": "overall", "vote": "tie"}, [], "no vote prefers an image"),
        (
            {"trial": "t", "criterion": "overall", "vote": "a"},
            [],
            "'t' does not say how its images",
        ),
        ({"trial": "t"}, ["--model", "tiny"], "--model is 'tiny'; give NAME=SOURCE"),
        ({"trial": "t"}, ["--criterion", "taste"], "no criterion 'taste'; choose one of overall"),
    ],
)
def test_bad_votes_are_one_sentence(triptych, line, arguments, said):
    if line is not None:
        Path("votes.jsonl").write_text(json.dumps(line) + "\n")
    status, out, err = triptych("data", "votes", "votes.jsonl", "--out", "pairs", *arguments)
    assert (status, out) == (1, "") and said in err and "Traceback" not in err
    assert not triptych.loaded and not Path("pairs").exists()


def test_settings_of_a_vote_are_checked_before_a_model_draws(tmp_path):
    found = votes(captions(1))
    found[0]["a"]["num_inference_steps"] = -1
    with pytest.raises(UserError, match="num_inference_steps"):
        GenerationConfig(**pairs_of(found, "overall")[0].rejected.settings)

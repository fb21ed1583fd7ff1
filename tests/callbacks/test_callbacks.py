"""Callbacks that evaluate a model in training: their outputs, and no effect on the training."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import jsonargparse
import numpy as np
import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from triptych.callbacks import EMA, Evaluate
from triptych.callbacks import SampleGrid as OwnSampleGrid
from triptych.interfaces import Evaluator
from triptych.utils.errors import UserError
from triptych.utils.finite import require_finite
from triptych.utils.image_grid import MARGIN, MIN_WIDTH, labelled_image_grid, stack_rows

SIDE = 48


class Vae:
    """Gives negatives back."""

    def __call__(self, pixels):
        return pixels

    def decode(self, latents):
        return 255 - latents


class Model(LightningModule):
    """One number that trains, and the inference methods of a UnifiedModule."""

    def __init__(self, *losses: str) -> None:
        super().__init__()
        self.loss_weights, self.build_decoder = {name: 1.0 for name in losses}, True
        self.weight = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Dropout().eval()
        self.modes = []
        self.prompts = []
        self.encoding = SimpleNamespace(heads=SimpleNamespace(pixels=lambda f: f))
        self.vae = Vae()

    @property
    def encoder(self):
        """As if the features were 3 cells of 16 pixels."""
        shrink = nn.PixelUnshuffle(16)

        def encode(pixels):
            return shrink(pixels / 127.5 - 1)

        encode.image_size = SIDE
        return encode

    def lacks(self, *parts):
        return None if self.build_decoder else "the stage does without the decoding panel"

    def preprocessing(self):
        return SimpleNamespace(understanding_size=SIDE)

    def generate(self, prompts, seeds):
        assert not self.training and not torch.is_grad_enabled()
        torch.rand(3)  # a careless part of a model
        self.prompts.append((prompts, seeds))
        return torch.stack([torch.full((3, SIDE, SIDE), 40 * s, dtype=torch.uint8) for s in seeds])

    def reconstruct(self, images, seeds, config=None):
        return 255 - images

    def answer(self, images, questions):
        return [f"answer to {question}" for question in questions]

    def training_step(self, batch, batch_idx):
        self.modes.append((self.training, self.frozen.training))
        return (self.weight - 1) ** 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    """Two validation samples, each with a caption, an image and a question about it."""

    def train_dataloader(self):
        return DataLoader(range(8), batch_size=1)

    def preview(self, objective, number, *needs):
        turns = [("describe the image", "caption 0"), ("what colour?", "red")]
        image = Image.new("RGB", (64, 50), (200, 0, 0))
        return [
            SimpleNamespace(key=str(n), text=f"caption {n}", image=image, turn=turns[n])
            for n in range(min(number, 2))
            if "edit" not in needs
        ]


def SampleGrid(**options):
    """A SampleGrid that asks the model itself."""
    return OwnSampleGrid(**options, previews=lambda model: model)


class Score(Evaluator):
    """The weight that trains."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.calls = factor, 0

    def __call__(self, model):
        self.calls += 1
        return {"easy": self.factor * float(model.weight), "mean": 0.5}


def fit(model, folder, *callbacks, data=None, steps=4, **options):
    loggers = [CSVLogger(folder, None, "run"), TensorBoardLogger(folder, None, "run")]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=loggers,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(model, datamodule=data or Data())
    return Path(folder) / "run"


def sheets(run):
    return sorted(path.name for path in (run / "samples").iterdir())


# --- drawing --------------------------------------------------------------------------------------


def test_grid_places_enlarged_images_with_room_for_long_labels():
    images = np.zeros((3, 16, 16, 3), np.uint8)
    images[2] = 90
    sheet = np.asarray(labelled_image_grid(images, ["a", "b " * 200, "c"], columns=2, scale=4))
    assert sheet.shape[1] == 2 * (MIN_WIDTH + MARGIN) + MARGIN
    assert (sheet[MARGIN : MARGIN + 64, MARGIN : MARGIN + 64] == 0).all()
    gray = (sheet == 90).all(axis=2)
    gray[:, MARGIN + 64 :] = False
    top = np.flatnonzero(gray[:, MARGIN + 10]).min()
    assert top > 64 + 100  # below the long label of the first row
    assert gray[top + 2 : top + 62, MARGIN : MARGIN + 64].all()


def test_above_puts_a_line_of_paper_between():
    tiles = stack_rows(np.zeros((2, 4, 5, 3), np.uint8), np.full((2, 4, 5, 3), 9, np.uint8))
    assert tiles.shape == (2, 9, 5, 3)
    assert [tiles[0, row, 0, 0] for row in (3, 4, 5)] == [0, 255, 9]


# --- SampleGrid -----------------------------------------------------------------------------------


def test_sample_grid_draws_the_same_prompts_at_start_on_time_and_at_the_end(tmp_path):
    model = Model("generation")
    run = fit(model, tmp_path, SampleGrid(every_n_steps=3, num_samples=5, seed=2), steps=4)
    assert sheets(run) == [f"step-{n:08d}.png" for n in (0, 3, 4)]
    assert model.prompts == [(["caption 0", "caption 1"], [2, 3])] * 3
    assert (
        np.asarray(Image.open(run / "samples/step-00000003.png"))[MARGIN + 5, MARGIN + 5, 0] == 80
    )


def test_sample_grid_with_nonfinite_values_is_skipped(tmp_path, caplog):
    class Spoilt(Model):
        def generate(self, prompts, seeds):
            require_finite(torch.tensor([float("nan")]), "the decoder's pixels")

    run = fit(Spoilt("generation"), tmp_path, SampleGrid(every_n_steps=2), steps=2)
    assert not (run / "samples").exists()
    assert "no grid at step 2: the decoder's pixels are NaN or infinite" in caplog.text


def test_sample_grid_disturbs_neither_modes_nor_random_numbers(tmp_path):
    model = Model("generation")
    torch.manual_seed(0)
    fit(Model("generation"), tmp_path / "without")
    expected = torch.rand(1)
    torch.manual_seed(0)
    fit(model, tmp_path / "with", SampleGrid(every_n_steps=1, prompts=["a", "b"]))
    assert torch.rand(1) == expected
    assert model.modes == [(True, False)] * 4


def test_sample_grid_shows_once_a_step_when_gradients_accumulate(tmp_path):
    model = Model("generation")
    fit(model, tmp_path, SampleGrid(every_n_steps=1), steps=2, accumulate_grad_batches=3)
    assert len(model.prompts) == 3


def test_tensorboard_gets_the_sheet(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(fit(Model("generation"), tmp_path, SampleGrid(every_n_steps=2))))
    events.Reload()
    assert [event.step for event in events.Images("samples")] == [0, 2, 4]


def test_sample_grid_of_ema_weights_is_written_too(tmp_path):
    class Shows(Model):
        """Images as bright as the weight, which goes from 0 towards 1."""

        def generate(self, prompts, seeds):
            value = (255 * self.weight.detach()).to(torch.uint8)
            return value.expand(len(seeds), 3, SIDE, SIDE)

    model, ema = Shows("generation"), EMA(decay=0.8, warmup=False, export=False)
    run = fit(model, tmp_path, SampleGrid(every_n_steps=4, upscale=1), ema)
    names = [f"step-{n:08d}{suffix}.png" for n in (0, 4) for suffix in ("-ema", "")]
    assert sheets(run) == names
    shown = [np.asarray(Image.open(run / "samples" / n))[MARGIN + 5, MARGIN + 5, 0] for n in names]
    average, weight = ema.average["weight"].item(), model.weight.item()
    assert shown == [0, 0, int(255 * average), int(255 * weight)] and average < weight - 0.1


def test_a_decoding_stage_shows_originals_above_reconstructions(tmp_path):
    run = fit(Model("decoding"), tmp_path, SampleGrid(every_n_steps=9, upscale=1), steps=1)
    sheet = np.asarray(Image.open(run / "samples/step-00000001.png"))
    assert sheet[MARGIN + 5, MARGIN + 5].tolist() == [200, 0, 0]
    assert sheet[MARGIN + SIDE + 5, MARGIN + 5].tolist() == [55, 255, 255]


def test_an_encoding_stage_shows_both_ways_back(tmp_path):
    run = fit(Model("encoding"), tmp_path, SampleGrid(every_n_steps=9, upscale=1), steps=1)
    sheet = np.asarray(Image.open(run / "samples/step-00000001.png"))
    column = [sheet[MARGIN + 5 + n * (SIDE + 1), MARGIN + 5].tolist() for n in range(3)]
    assert column == [[200, 0, 0], [55, 255, 255], [200, 0, 0]]


def test_an_understanding_stage_writes_answers(tmp_path):
    run = fit(Model("understanding"), tmp_path, SampleGrid(every_n_steps=9), steps=1)
    assert "step-00000001.png" in sheets(run)
    assert (run / "samples/step-00000001.txt").read_text().split("\n\n") == [
        "Q: describe the image\nA: answer to describe the image\nright: caption 0",
        "Q: what colour?\nA: answer to what colour?\nright: red\n",
    ]


def test_sample_grid_steps_aside_and_says_once_why(tmp_path, caplog):
    class Bare(Data):
        preview = None

    class Empty(Data):
        def preview(self, *_):
            return []

    blind = Model("generation")
    blind.build_decoder = False
    for model, data, reason in (
        (Model("decoding"), Bare(), "no validation sample has an image"),
        (Model("generation"), Empty(), "no validation sample has a caption or an edit"),
        (Model(), Data(), "it has nothing to show for the losses []"),
        (blind, Data(), "the stage does without the decoding panel"),
    ):
        caplog.clear()
        run = fit(model, tmp_path, SampleGrid(every_n_steps=1), data=data, steps=2)
        assert caplog.text.count("SampleGrid steps aside") == 1 and reason in caplog.text
        assert not (run / "samples").exists()
    run = fit(Model("generation"), tmp_path, SampleGrid(prompts=["mine"]), data=Bare(), steps=1)
    assert (run / "samples").exists()
    with pytest.raises(UserError, match="1 or more"):
        SampleGrid(every_n_steps=0)


# --- Evaluate -------------------------------------------------------------------------------------


def test_evaluate_scores_before_on_time_and_after(tmp_path, capsys):
    callback = Evaluate(Score(), every_n_steps=2, name="exam")
    run = fit(Model("generation"), tmp_path, callback, steps=4)
    assert callback.evaluator.calls == 3  # step 4 is on time and the end at once
    assert callback.before["easy"] == 0 and callback.after["easy"] > 0.5
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    scored = {int(row["step"]): float(row["exam/easy"]) for row in rows if row["exam/easy"]}
    assert list(scored) == [0, 2, 4] and scored[4] == pytest.approx(callback.after["easy"])
    printed = capsys.readouterr().out
    assert "exam  before   after\neasy   0.000   0.590\nmean   0.500   0.500" in printed
    written = json.loads((run / "scores.json").read_text())
    assert written == json.loads((run.parent / "scores.json").read_text())
    assert (written["before"], written["after"], written["step"]) == (0.5, 0.5, 4)
    assert written["scores"]["exam"]["after"] == callback.after and written["run"] == run.name


def test_evaluate_scores_the_average_where_a_run_has_one(tmp_path):
    class Weight:
        parts = ()

        def __call__(self, model):
            return {"mean": float(next(iter(model.parameters())))}

    ema, callback = EMA(decay=0.5, warmup=False, export=False), Evaluate(Weight())
    model = Model("generation")
    fit(model, tmp_path, callback, ema, steps=4)
    average = float(next(iter(ema.average.values())))
    assert callback.after["mean"] == average != float(next(iter(model.parameters())))


def test_evaluate_is_skipped_in_stages_without_the_scored_parts(tmp_path, caplog):
    blind = Model("generation")
    blind.build_decoder = False
    callback = Evaluate(Score())
    callback.evaluator.parts = ("decoding",)
    fit(blind, tmp_path, callback, steps=1)
    assert callback.evaluator.calls == 0 and "Evaluate steps aside: the stage" in caplog.text


def test_evaluate_keeps_the_score_from_before_across_a_resume():
    first, second = Evaluate(Score()), Evaluate(Score())
    first.before = {"easy": 0.25}
    second.load_state_dict(first.state_dict())
    assert second.before == {"easy": 0.25}


def test_both_are_built_from_yaml():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[Callback])
    evaluator = {"class_path": "triptych.evaluation.ShapeEval", "init_args": {"num_images": 120}}
    entries = [
        {"class_path": "triptych.callbacks.Evaluate", "init_args": {"evaluator": evaluator}},
        {"class_path": "triptych.callbacks.SampleGrid", "init_args": {"prompts": ["a circle"]}},
    ]
    built = parser.instantiate_classes(parser.parse_object({"callbacks": entries})).callbacks
    assert built[0].evaluator.num_images == 120 and built[1].prompts == ["a circle"]

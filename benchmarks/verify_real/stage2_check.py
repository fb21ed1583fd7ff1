"""A few steps of stage 2 under a real frozen language model, on real images with captions."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from triptych.backbones import EvaClip, LuminaNextDiT, QwenVL
from triptych.backbones.qwen2_5_vl_config import Vocabulary
from triptych.data_modules import Collator, ImageFolder, TaskDataset
from triptych.interfaces import TEXT_TO_IMAGE, Batch
from triptych.modules import GenerationModule
from triptych.training.freezing import freeze_all_but
from verify_real.gguf_models import as_qwen_vl, load_reference
from verify_real.parts import QWEN_GGUF
from verify_real.qwen_check import ROWS
from verify_real.qwen_tokenizers import write_for_generation
from verify_real.rows import Row
from verify_real.stamps import Stamps, fitted, paste

SIDE = 48  # pixels
CHOSEN = (
    "animals/amphibians/frog",
    "animals/mammals/cats/tiger",
    "space/planets/6_saturn",
    "vehicles/auto/sportscar2",
)
QUERIES, STEPS, RATE = 8, 6, 5e-3
TIMESTEPS = [0.3, 0.6, 0.9]
FALLS = 0.9  # of the loss before: the loss must fall by more than a tenth


def rows(parts: Path) -> Iterator[Row]:
    """Rows of the check."""
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer, images = Path(scratch, "tokenizer"), Path(scratch, "images")
        tokenizer.mkdir()
        write_for_generation(parts, tokenizer)
        reference = load_reference(parts / QWEN_GGUF, torch.bfloat16)
        vlm = as_qwen_vl(reference, Vocabulary(rows=ROWS), str(tokenizer))
        write_images(Stamps(parts), images)
        yield from train(vlm, images)


def write_images(stamps: Stamps, folder: Path) -> None:
    """Write the chosen stamps, on grey, with their captions beside them."""
    captions = {stamp.name: stamp.caption for stamp in stamps.all}
    for name in CHOSEN:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = SIDE * 4
        paste([(fitted(stamps.image(name), size), (size // 2, size // 2))], size).save(path)
        path.with_suffix(".txt").write_text(captions[name])


def train(vlm: QwenVL, images: Path) -> Iterator[Row]:
    """Train queries and a small DiT on features of a small random encoder."""
    torch.manual_seed(0)
    model = GenerationModule(
        LuminaNextDiT(width=64, depth=2, heads=4, multiple_of=32, gate_init=1.0),
        num_queries=QUERIES,
        query_init_std=vlm.model.get_input_embeddings().weight[:1000].float().std().item(),
        vlm=vlm,
        encoder=EvaClip(
            image_size=SIDE,
            patch_size=16,
            width=32,
            depth=2,
            heads=2,
            mlp_width=64,
            pool=1,
            standardize=True,
        ),
    )
    model.build()
    trained = freeze_all_but(model, model.trainable)
    parameters = dict(model.named_parameters())
    before = hashes(vlm)
    batch = read_batch(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        first = model.loss_at_timesteps(batch, TIMESTEPS).mean().item()
    # no decay: it would move parameters that have no gradient
    optimizer = torch.optim.AdamW(
        [parameters[name] for name in sorted(trained)], RATE, weight_decay=0
    )
    largest = 0.0
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = model.step(batch)
        optimizer.zero_grad()
        loss.backward()
        largest = max(largest, parameters["queries"].grad.abs().max().item())
        optimizer.step()
    with torch.autocast("cpu", torch.bfloat16):
        last = model.loss_at_timesteps(batch, TIMESTEPS).mean().item()
    compared = f"before {STEPS} steps, {first:.4g}: after, same noise, {len(batch)} stamps"
    yield Row("stage 2 loss", compared, last, FALLS * first)
    yield Row("stage 2 gradient of the queries", "through the frozen model", largest, 1e-12, ">=")
    after = hashes(vlm)
    changed = sum(before[name] != after[name] for name in before)
    compared = f"before training, tensors of {len(before)} that changed a bit"
    yield Row("stage 2 frozen language model", compared, changed, 0, "==")


def read_batch(model: GenerationModule, images: Path) -> Batch:
    """All images as one training batch, by the code of data modules."""
    source = ImageFolder(images).open()
    collate = Collator([TaskDataset(source, TEXT_TO_IMAGE)], model.preprocessing())
    numbers = list(range(len(CHOSEN)))
    return collate(0, [(0, number) for number in numbers], numbers)


def hashes(module: nn.Module) -> dict[str, bytes]:
    """Hash of the bytes of each parameter."""
    return {
        name: hashlib.sha1(p.detach().contiguous().view(torch.uint8).numpy()).digest()
        for name, p in module.named_parameters()
    }

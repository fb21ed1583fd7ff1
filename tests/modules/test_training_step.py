"""The step of stages 2 and 3: its optimizations are exact, and it never synchronizes the device."""

from contextlib import nullcontext

import pytest
import torch
from builders import batches, data, needed, relative, unified, vlm
from lightning import Callback, Trainer
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from nothing_read import NothingIsRead, Refused
from published_step import published_loss, recomputing
from torch import nn

from triptych.callbacks import ProgressBar
from triptych.interfaces import TEXT_TO_IMAGE
from triptych.prompts import IMAGE_PAD, generation_ids, pad, shared_tokens, token_id

OBJECTIVES = ["clip_flow", "clip_mse", "vae_flow"]


def stage2(weights, **settings):
    model = unified("stage2", weights=needed(weights, "stage2"), **settings)
    model.configure_model()
    return model.train()


def gradients(model):
    """Queries, caption projection and DiT, each as one vector."""
    generation = model.generation
    parts = {
        "queries": [generation.queries],
        "projection": list(generation.dit.caption_projection.parameters()),
        "dit": [p for p in generation.dit.dit.parameters() if p.requires_grad],
    }
    found = {name: torch.cat([p.grad.flatten() for p in held]) for name, held in parts.items()}
    model.zero_grad()
    return found


# --- the same gradients ---------------------------------------------------------------------------


def ragged(model, samples):
    batch = batches(model, samples, TEXT_TO_IMAGE, range(6))
    lengths = batch.attention_mask.sum(1)
    assert lengths.min() < lengths.max() and batch.num_shared_prefix_tokens > 20
    return batch


def test_gradients_are_those_of_the_published_computation(weights, samples):
    model = stage2(weights)
    batch = ragged(model, samples)
    with recomputing(model):
        plain = published_loss(model, batch)
        plain.backward()
    expected = gradients(model)
    loss = model.step(batch)[0]
    loss.backward()
    found = gradients(model)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    for name in expected:
        assert expected[name].norm() > 0
        assert relative(found[name], expected[name]) <= 1e-6, name


def left_padded(qwen, batch, queries):
    """Outputs at the queries, by transformers' own masks, behind prompts that are padded left."""
    lengths = batch.attention_mask.sum(1)
    rows = [row[:length].tolist() for row, length in zip(batch.input_ids, lengths, strict=True)]
    ids, mask = pad(rows, value=0, left=True)
    ones = mask.new_ones(len(rows), len(queries))
    mask = torch.cat([mask, ones], 1)
    language_model = qwen.model.model.language_model
    embeds = torch.cat([language_model.embed_tokens(ids), queries.expand(len(rows), -1, -1)], 1)
    return language_model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp_min(0),
        use_cache=False,
    ).last_hidden_state[:, -len(queries) :]


def test_gradients_are_those_of_all_tokens_padded_left(weights, samples):
    model = stage2(weights)
    batch, qwen = ragged(model, samples), model.understanding.vlm
    start, pull = model.generation.queries.detach(), torch.randn(6, 4, 64)
    results = []
    for run in (
        lambda queries: left_padded(qwen, batch, queries),
        lambda queries: (
            qwen.condition(
                batch.input_ids,
                batch.attention_mask,
                queries,
                num_shared_prefix_tokens=batch.num_shared_prefix_tokens,
            ).hidden_states
        ),
    ):
        queries = start.clone().requires_grad_()
        states = run(queries)
        (states * pull).sum().backward()
        results.append((states.detach(), queries.grad))
    (expected, slope), (found, own_slope) = results
    assert relative(found, expected) <= 1e-6
    assert relative(own_slope, slope) <= 1e-6


class LowRank(nn.Module):
    """An adapter as everyone writes it: beside a frozen linear map."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Parameter(torch.randn(2, frozen.in_features) * 0.1)
        self.up = nn.Parameter(torch.randn(frozen.out_features, 2) * 0.1)

    def forward(self, x):
        return self.frozen(x) + x @ self.down.T @ self.up.T


def test_an_adapter_in_the_language_model_gets_the_gradient_of_all_tokens(weights, samples):
    model = stage2(weights)
    batch, qwen = ragged(model, samples), model.understanding.vlm
    layer = qwen.model.model.language_model.layers[0].self_attn
    torch.manual_seed(0)
    layer.v_proj = adapter = LowRank(layer.v_proj)
    model.double()  # of some adapters the gradient nearly cancels out, and rounding would show
    with recomputing(model):
        published_loss(model, batch).backward()
    expected = adapter.down.grad.clone(), adapter.up.grad.clone(), model.generation.queries.grad
    model.zero_grad()
    model.step(batch)[0].backward()
    found = adapter.down.grad, adapter.up.grad, model.generation.queries.grad
    for own, other in zip(found, expected, strict=True):
        assert relative(own, other) <= 1e-6


# --- what is computed -----------------------------------------------------------------------------


def test_no_logits_are_made_and_the_template_is_computed_once(weights, samples, monkeypatch):
    model = stage2(weights)
    batch, qwen = ragged(model, samples), model.understanding.vlm

    def refused(_):
        raise AssertionError("logits were made")

    monkeypatch.setattr(qwen.model.lm_head, "forward", refused)
    seen = computed(qwen.model.model.language_model, lambda: model.step(batch)[0].backward())
    length, shared = batch.input_ids.shape[1], batch.num_shared_prefix_tokens
    # a layer after the other: each is gathered once where FSDP2 splits it
    assert seen == [
        (number, *each)
        for number in range(len(qwen.model.model.language_model.layers))
        for each in [(False, 1, shared), (False, 6, length - shared), (True, 6, 4)]
    ]


def computed(language_model, run):
    """(layer, whether with gradient, rows, tokens) of each call of a layer's attention in `run`."""
    seen = []

    def see(number, hidden_states):
        seen.append((number, torch.is_grad_enabled(), *hidden_states.shape[:2]))

    handles = [
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs, number=number: see(number, kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for number, layer in enumerate(language_model.layers)
    ]
    run()
    for handle in handles:
        handle.remove()
    return seen


def test_a_prompt_is_computed_in_no_other_call_of_the_language_model(weights, samples):
    """Its hooks go with the call, also one that fails; a call beside it has another cache."""
    model = stage2(weights)
    batch, qwen = ragged(model, samples), model.understanding.vlm
    language_model, beside = qwen.model.model.language_model, torch.zeros(2, 3, 64)
    inner = computed(language_model, lambda: language_model(inputs_embeds=beside))
    assert [each[2:] for each in inner] == [(2, 3)] * len(language_model.layers)

    def fails(*_):
        seen = computed(language_model, lambda: language_model(inputs_embeds=beside))
        assert [each[2:] for each in seen] == [(2, 3)] * len(language_model.layers)
        raise KeyError

    handle = language_model.register_forward_pre_hook(lambda *_: handle.remove() or fails())
    with pytest.raises(KeyError):
        model.step(batch)
    assert not any(layer._forward_pre_hooks for layer in language_model.layers)


@pytest.mark.parametrize("replaced", [False, True])
def test_the_last_layer_makes_no_more_of_a_prompt_than_keys(weights, samples, replaced):
    """But for a layer with a forward of its own, as compilation gives it."""
    model = stage2(weights)
    batch, qwen = ragged(model, samples), model.understanding.vlm
    layer, called = qwen.model.model.language_model.layers[-1], []
    layer.mlp.down_proj.register_forward_hook(lambda *_: called.append(torch.is_grad_enabled()))
    if replaced:
        layer.forward = layer.forward
    model.step(batch)
    assert called == ([False, False, True] if replaced else [True])
    assert "forward" not in vars(layer.mlp)


def test_shared_tokens():
    assert shared_tokens([[1, 2, 3, 4], [1, 2, 5, 4]], None) == 2
    assert shared_tokens([[1, 2], [1, 2]], None) == 1  # something is left over
    assert shared_tokens([[1, 2, 3], [1, 2]], None) == 1
    assert shared_tokens([[1, 9, 3], [1, 9, 4]], image=9) == 1
    assert shared_tokens([[1, 2], [3, 2]], None) == 0
    assert shared_tokens([[7]], None) == shared_tokens([[1, 2, 3]], None) == 0


def test_loader_counts_the_shared_prompt_prefix(weights, samples):
    batch = ragged(stage2(weights), samples)
    tokenizer = vlm().tokenizer
    rows = [generation_ids(tokenizer, caption, 256) for caption in ("a b", "c d e")]
    instruction = shared_tokens(rows, token_id(tokenizer, IMAGE_PAD))
    assert batch.num_shared_prefix_tokens >= instruction > 20
    same = batch.input_ids[:, : batch.num_shared_prefix_tokens]
    assert torch.equal(same, same[:1].expand_as(same))


# --- the host does not wait -----------------------------------------------------------------------


def test_the_refusal_works():
    with NothingIsRead():
        for read in (
            lambda x: x.item(),
            lambda x: x[x > 0],
            lambda x: bool((x > 0).all()),
            lambda x: x.nonzero(),
        ):
            with pytest.raises(Refused):
                read(torch.ones(1))


def partly_cached(model, samples):
    """A batch of which every other sample brings its features."""
    batch = ragged(model, samples)
    with torch.no_grad():
        batch.target_features = model.target_encoder(batch.target_pixels)
    batch.has_features = torch.arange(6) % 2 == 0
    return batch


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("features", ["live", "cached"])
def test_a_step_reads_nothing(weights, samples, objective, features):
    model = stage2(weights, objective=objective)
    batch = ragged(model, samples)
    if features == "cached":
        with torch.no_grad():
            batch.target_features = model.target_encoder(batch.target_pixels)
        batch.target_pixels = None
    with NothingIsRead():
        model.step(batch)[0].backward()


@pytest.mark.parametrize("make", [ragged, partly_cached])
def test_training_step_needs_no_device_synchronization(weights, samples, make):
    """On the meta device tensors have shapes and no values."""
    model = stage2(weights)
    batch = make(model, samples)
    loss, _ = model.to("meta").step(batch.to("meta"))
    loss.backward()
    assert loss.is_meta and model.generation.queries.grad.is_meta


class ReadNothing(Callback):
    """From the start of a batch to the end of its callbacks, but for the bar's first look."""

    def on_train_batch_start(self, trainer, *_):
        self.mode = NothingIsRead() if trainer.global_step else nullcontext()
        self.mode.__enter__()

    def on_train_batch_end(self, *_):
        self.mode.__exit__(None, None, None)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_whole_step_of_the_trainer_reads_nothing(weights, shapes_folder, tmp_path, accumulate):
    """Optimizer, clipping, logging and the bar included, between two lines of the log."""
    model = unified("stage2", weights=needed(weights, "stage2"))
    trainer = Trainer(
        max_steps=3,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        gradient_clip_val=1.0,
        log_every_n_steps=100,
        callbacks=[ProgressBar(), LearningRateMonitor("step"), ReadNothing()],
        logger=CSVLogger(tmp_path),
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    trainer.fit(model, data(shapes_folder))
    assert trainer.global_step == 3


def test_partly_cached_features_are_those_of_the_encoder(weights, samples):
    model = stage2(weights)
    batch = partly_cached(model, samples)
    with torch.no_grad():
        mixed = model.step(batch)[0]
        batch.target_features = batch.has_features = None
        assert torch.allclose(model.step(batch)[0], mixed, rtol=1e-6)


def test_host_fields_of_a_batch_stay_on_the_host(weights, samples):
    batch = partly_cached(stage2(weights), samples)
    moved = move_data_to_device({"a": batch}, torch.device("meta"))["a"]
    assert moved.input_ids.is_meta and moved.target_features.is_meta and moved.target_pixels.is_meta
    assert moved.sample_ids is batch.sample_ids and moved.has_features is batch.has_features
    assert (
        moved.keys == batch.keys
        and moved.num_shared_prefix_tokens == batch.num_shared_prefix_tokens
    )


@pytest.mark.gpu
def test_a_batch_can_be_pinned(weights, samples):
    assert ragged(stage2(weights), samples).pin_memory().input_ids.is_pinned()

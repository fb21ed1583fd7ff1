"""Floating-point operations of the large components by formula; a multiply-add is two.

    forward       2 W a token for a linear map of W weights;
                  4 q k w for the attention of q tokens to k tokens over the width w
    backward      to the inputs, the same for linear maps and twice as much for attention;
                  to the weights, the same again for linear maps

Like `flop_counter.count_flops`, against which tests and `make bench` compare: masked attention
counts in full; norms, activations, softmax, rotary tables and biases do not count. One sample is
one image with its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.backbones import EvaClip, LuminaNextDiT, QwenVL


@dataclass(frozen=True)
class Cost:
    """FLOPs of one forward pass; linear maps and attention have different backward costs."""

    linear: float
    attention: float = 0.0

    @property
    def forward(self) -> float:
        return self.linear + self.attention

    @property
    def backward_frozen(self) -> float:
        """Backward cost to the inputs only, for a frozen component after a trainable one."""
        return self.linear + 2 * self.attention

    @property
    def backward(self) -> float:
        """Backward cost to inputs and weights, for a trainable component."""
        return 2 * self.linear + 2 * self.attention


@dataclass(frozen=True)
class SampleFlops:
    """FLOPs of one training step for one sample, by component."""

    language_model: float
    velocity_model: float
    encoder: float = 0.0
    logits: float = 0.0

    @property
    def total(self) -> float:
        return self.language_model + self.velocity_model + self.encoder + self.logits


def language_model(qwen: QwenVL, tokens: int, before: int = 0) -> Cost:
    """Cost of `tokens` through the language model, after `before` cached tokens; no logits."""
    text = qwen.text
    keys = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    attention = (
        2 * text.hidden_size * (text.hidden_size + keys)
    )  # queries and outputs, keys, values
    weights = text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)
    pairs = tokens * (before + tokens)
    return Cost(2 * weights * tokens, 4 * text.num_hidden_layers * pairs * text.hidden_size)


def prompt(qwen: QwenVL, tokens: int, before: int = 0) -> Cost:
    """Cost of filling only the key-value cache: the last feed-forward part is skipped."""
    whole = language_model(qwen, tokens, before)
    last = 3 * qwen.text.hidden_size * qwen.text.intermediate_size
    return Cost(whole.linear - 2 * last * tokens, whole.attention)


def logits(qwen: QwenVL, tokens: int) -> Cost:
    """Logits over the whole vocabulary for `tokens`."""
    return Cost(2 * qwen.text.hidden_size * qwen.vocabulary.rows * tokens)


def vision_tower(qwen: QwenVL) -> Cost:
    """One image through the language model's own vision tower, its tokens merged."""
    vision, side = qwen.vision, qwen.image_size // qwen.vision.patch_size
    width, patches = vision.hidden_size, side * side
    block = 4 * width**2 + 3 * width * vision.intermediate_size
    patch = 3 * vision.temporal_patch_size * vision.patch_size**2 * width
    merged = width * vision.spatial_merge_size**2
    merger = merged * (merged + qwen.width) * qwen.image_tokens()
    whole = len(vision.fullatt_block_indexes)
    visible = (
        whole * patches + (vision.depth - whole) * (vision.window_size // vision.patch_size) ** 2
    )
    return Cost(
        2 * (patches * (vision.depth * block + patch) + merger), 4 * patches * visible * width
    )


def image_encoder(eva: EvaClip) -> Cost:
    """One image through the image encoder."""
    side = eva.image_size // eva.patch_size
    patches, tokens = side * side, side * side + 1  # and CLS
    weights = eva.depth * (4 * eva.width**2 + 2 * eva.width * eva.mlp_width)
    patch = 3 * eva.patch_size**2 * eva.width
    attention = 4 * eva.depth * tokens**2 * eva.width
    return Cost(2 * (tokens * weights + patches * patch), attention)


def velocity_model(dit: LuminaNextDiT, queries: int, *, source: bool = False) -> Cost:
    """Cost of one noised feature grid through the DiT, conditioned on `queries` hidden states.

    With a `source`, as in every training step of a DiT that takes one.
    """
    channels, side, _ = dit.feature_shape
    width, embedding = dit.width, min(dit.width, 1024)  # time and pooled condition, in diffusers
    tokens, patch = (side // dit.patch_size) ** 2, channels * dit.patch_size**2
    embedded = tokens * patch * width if source and dit.source == "channels" else 0
    tokens *= 2 if source and dit.source == "tokens" else 1
    of_token = 5 * width**2 + 3 * width * dit.feed_forward_width
    block = tokens * of_token + queries * 2 * width**2 + embedding * 4 * width
    projection = queries * width * (dit.condition_width + width)
    ends = tokens * 2 * patch * width + embedding * (256 + embedding + 2 * width)
    attention = 4 * dit.depth * tokens * (tokens + queries) * width
    return Cost(2 * (dit.depth * block + projection + ends + embedded), attention)


def generation_step(
    qwen: QwenVL,
    dit: LuminaNextDiT,
    encoder: EvaClip | None,
    tokens: int,
    queries: int,
    *,
    registers: int = 0,
    shared: float = 0.0,
    groups: int = 1,
    images: float = 1.0,
) -> SampleFlops:
    """Step of stages 2 and 3, with a frozen language model: forward and backward pass.

    Args:
        qwen: language model.
        dit: velocity model.
        encoder: image encoder; None if the features are cached.
        tokens: number of tokens of the prompt, `[IMG]` included.
        queries: number of queries.
        registers: number of queries whose outputs the velocity model does not see.
        shared: number of these tokens that are computed once for a whole batch; not counted.
        groups: number of places of the prompt at which the queries run.
        images: number of images to generate, at most one for each place.
    """
    own = tokens - shared
    query_cost = language_model(qwen, groups * (registers + queries), tokens)
    dit_cost = velocity_model(dit, queries, source=dit.takes_source)
    return SampleFlops(
        language_model=prompt(qwen, own, shared).forward
        + query_cost.forward
        + query_cost.backward_frozen,
        velocity_model=images * (dit_cost.forward + dit_cost.backward),
        encoder=images * image_encoder(encoder).forward if encoder else 0.0,
    )


def published_step(
    qwen: QwenVL, dit: LuminaNextDiT, encoder: EvaClip, tokens: int, queries: int
) -> SampleFlops:
    """The same step in the published code.

    All tokens take part in the backward pass, language model and DiT use activation checkpointing,
    and unused logits are computed.
    """
    every, dit_cost = language_model(qwen, tokens + queries), velocity_model(dit, queries)
    return SampleFlops(
        language_model=2 * every.forward + every.backward_frozen,
        velocity_model=2 * dit_cost.forward + dit_cost.backward,
        encoder=image_encoder(encoder).forward,
        logits=logits(qwen, tokens + queries).forward,
    )


def understanding_step(qwen: QwenVL, tokens: int, learned: int, images: int = 1) -> float:
    """Step of stage 1, in which everything is trainable.

    Args:
        qwen: language model.
        tokens: number of tokens, those of images included.
        learned: number of tokens with a label, whose logits are computed.
        images: number of images.
    """
    text, vision, out = language_model(qwen, tokens), vision_tower(qwen), logits(qwen, learned)
    return sum(
        times * (cost.forward + cost.backward)
        for times, cost in ((1, text), (images, vision), (1, out))
    )

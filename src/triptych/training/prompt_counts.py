"""Counts of a batch's prompts, by which the cost of a step is reckoned before there is data.

A batch pads its prompts to the longest and runs the queries of as many images after each: one story
among captions makes every prompt as long as a story.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from triptych.interfaces import Batch

PROMPT_TOKENS = 136
"""Tokens of a long caption in its template, including [IMG]."""
ANSWER_TOKENS = 121
"""Tokens of the caption alone, the targets where captions are answers."""
STORY_IMAGES = 3
"""Images of a story of the shapes world, in the mean; the assistant makes all of them."""
STORY_TOKENS = 96
"""Tokens of such a story in the mean, without the placeholders of its images."""
STORY_ANSWER_TOKENS = 10
"""Tokens that the assistant says in it, `[IMG]` and ends of messages included."""


@dataclass(frozen=True)
class PromptCounts:
    """Counts of one prompt of a batch; all but the first two are means over its prompts."""

    tokens: int
    """Tokens of the longest prompt, placeholders of images included."""
    groups: int = 1
    """Most images that are made in one prompt: so many groups of queries run after each."""
    shown: float = 0.0
    """Images that the language model sees."""
    made: float = 1.0
    """Images to generate; 0 where text is learned."""
    sources: float = 0.0
    """Images that have a source, for a generator that sees it."""
    learned: float = 0.0
    """Tokens with a label."""

    @classmethod
    def of(cls, batch: Batch) -> PromptCounts:
        """Count the prompts of a batch."""
        prompts, tokens = batch.input_ids.shape
        shown = 0 if batch.image_grid_thw is None else len(batch.image_grid_thw)
        if batch.labels is not None:
            return cls(tokens, 0, shown / prompts, 0.0, 0.0, int(batch.elements) / prompts)
        groups = 1 if batch.query_places is None else batch.query_places.shape[1]
        sources = 0 if batch.source_pixels is None else len(batch.source_pixels)
        return cls(tokens, groups, shown / prompts, len(batch) / prompts, sources / prompts)


def understanding_counts(model: Any, stories: float = 0.0) -> PromptCounts:
    """Return the counts of captions of an image each, a share `stories` of them stories."""
    image, rest = model.understanding.vlm.image_tokens(), 1 - stories
    captions = PROMPT_TOKENS + image if rest else 0
    talks = STORY_TOKENS + STORY_IMAGES * image if stories else 0
    return PromptCounts(
        max(captions, talks),
        groups=0,
        shown=rest + stories * STORY_IMAGES,
        made=0.0,
        learned=rest * ANSWER_TOKENS + stories * STORY_ANSWER_TOKENS,
    )


def generation_counts(model: Any, edits: bool = False, stories: float = 0.0) -> PromptCounts:
    """Return the counts of captions to make images of, a share `stories` of them stories.

    Args:
        model: a UnifiedModule.
        edits: whether each caption shows an image as well, that is to be changed.
        stories: share of the prompts that are stories, which end before their last image.
    """
    image, rest = model.understanding.vlm.image_tokens(), 1 - stories
    captions = PROMPT_TOKENS + edits * image if rest else 0
    talks = STORY_TOKENS + (STORY_IMAGES - 1) * image if stories else 0
    changed = edits * rest + stories * (STORY_IMAGES - 1)
    return PromptCounts(
        max(captions, talks),
        groups=STORY_IMAGES if stories else 1,
        shown=changed,
        made=rest + stories * STORY_IMAGES,
        sources=changed if model.generation.takes_source else 0.0,
    )

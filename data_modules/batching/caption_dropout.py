"""Words left out of captions in training."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from triptych.utils.errors import UserError

_PUNCTUATION = ".,;:!?\"'()"


@dataclass(frozen=True)
class CaptionDropout:
    """Words (or tags) left out of captions in training, for each sample others.

    An image whose caption says less than it shows teaches what the remaining words mean by
    themselves, not only in the combinations that occur. Protected words and the dropout of tags
    follow Illustrious (arXiv 2409.19946).

    Args:
        probability: probability of each word to be left out, at least 0 (nothing is) and less
            than 1.
        words: words that may be left out, for example those of an attribute; null is all.
        protected: words that are never left out, for example the name of a style.
        separator: what stands between two of them: " " in sentences, "," between tags.

    Raises:
        UserError: the probability is not at least 0 and less than 1, or there is no separator.
    """

    probability: float = 0.0
    words: list[str] | None = None
    protected: list[str] = field(default_factory=list)
    separator: str = " "

    def __post_init__(self) -> None:
        if not 0 <= self.probability < 1:
            raise UserError(
                f"caption_dropout.probability is {self.probability}; give one of at least 0 and "
                "less than 1."
            )
        if not self.separator:
            raise UserError(
                'caption_dropout.separator is empty; give " " for words or "," for tags.'
            )

    def __call__(self, caption: str, rng: np.random.Generator) -> str:
        """Caption without the words that `rng` chooses; at least one word stays."""
        words = caption.split(self.separator)
        dropped = rng.random(len(words)) < self.probability
        kept = [
            word
            for word, drop in zip(words, dropped, strict=True)
            if not (drop and self._may_drop(word))
        ]
        return self.separator.join(kept).strip() or caption

    def _may_drop(self, word: str) -> bool:
        word = word.strip().strip(_PUNCTUATION).casefold()
        if word in {each.casefold() for each in self.protected}:
            return False
        return self.words is None or word in {each.casefold() for each in self.words}


NO_DROPOUT = CaptionDropout()

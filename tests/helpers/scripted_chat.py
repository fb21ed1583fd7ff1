"""A language model that writes what a test says, with the images of a real one in between."""

from __future__ import annotations

from triptych.prompts import IM_END, IM_START, PAD, START_OF_IMAGE, token_id
from triptych.utils.tokens import Control, encode


class Script:
    """Replaces `generate_text`: each answer is the script of its conversation's last question.

    Args:
        tokenizer: tokenizer of the model.
        answers: last question -> pieces of its answer; an image is START_OF_IMAGE, and the end is
            added.
    """

    def __init__(self, tokenizer, answers):
        self.tokenizer, self.calls = tokenizer, []
        self.answers = {
            question: encode(tokenizer, [*pieces, IM_END]) for question, pieces in answers.items()
        }
        self.image = token_id(tokenizer, START_OF_IMAGE)

    def __call__(
        self, input_ids, mask, pixels, grids, *, max_new_tokens, sampling, forbidden, on_tokens
    ):
        self.calls.append((input_ids, grids, sampling, forbidden))
        rows = [
            self._rest(row[seen.bool()].tolist(), some)
            for row, seen, some in zip(input_ids, mask, forbidden, strict=True)
        ]
        pad = token_id(self.tokenizer, PAD)
        for step in range(max_new_tokens):
            tokens = [row[step] if step < len(row) else pad for row in rows]
            if all(on_tokens(tokens)):
                return
        assert all(on_tokens([pad] * len(rows)))

    def _rest(self, ids, forbidden):
        """The rest of the script of a row, without the tokens that are forbidden."""
        starts = [n for n, each in enumerate(ids) if each == token_id(self.tokenizer, IM_START)]
        question = self.tokenizer.decode(ids[starts[-2] : starts[-1]])
        question = question.split("\n", 1)[1].removesuffix("<|im_end|>\n")
        answer = self.answers[question.rpartition("<|vision_end|>")[2]]
        begun = ids[starts[-1] :].count(self.image)
        places = [n for n, each in enumerate(answer) if each == self.image]
        rest = answer[places[begun - 1] + 1 :] if begun else answer
        return [token for token in rest if token not in forbidden]


IMAGE = Control(START_OF_IMAGE)

"""The understanding panel: a language model that reads text and images."""

from __future__ import annotations

from torch import Tensor, distributed

from triptych.contracts import IMAGE_TO_TEXT, Batch, Preprocessing, Understander
from triptych.freezing import Optimization
from triptych.modules.panel import Metrics, Panel
from triptych.prompts import IGNORED
from triptych.sharding import Execution
from triptych.weights import WeightFiles


class UnderstandingModule(Panel):
    """Next-token cross entropy on the answers of conversations, with and without pictures.

    Args:
        understander: the language model with its vision tower.
        max_tokens: longest prompt or conversation.
        optimization, trains, weights, seed, execution: see `Panel`; used when this is the root.
    """

    task = IMAGE_TO_TEXT

    def __init__(
        self,
        understander: Understander,
        max_tokens: int = 512,
        optimization: Optimization | None = None,
        trains: list[str] | None = None,
        weights: WeightFiles | None = None,
        seed: int = 0,
        execution: Execution | None = None,
    ) -> None:
        super().__init__(optimization, trains, weights, seed, execution)
        self.understander, self.max_tokens = understander, max_tokens

    def step(self, batch: Batch) -> tuple[Tensor, Metrics]:
        loss = self.understander.lm_loss(batch) * share_of_tokens(batch.labels)
        return loss, {"understanding": loss.detach()}

    def preprocessing(self) -> Preprocessing:
        understander = self.understander
        return Preprocessing(
            tokenizer=understander.tokenizer,
            max_tokens=self.max_tokens,
            picture_size=understander.image_size,
            understanding_size=understander.image_size,
            image_tokens=understander.image_tokens(),
            image_inputs=understander.image_inputs,
        )


def share_of_tokens(labels: Tensor) -> Tensor | float:
    """Tokens to learn in `labels` [B,T] on this rank, over their mean over all ranks.

    Gradients are averaged over ranks. So weighted, each token counts the same wherever it is, as
    if one process had all; 1 in a single process.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1.0
    here = (labels[:, 1:] != IGNORED).sum().float()
    everywhere = here.clone()
    distributed.all_reduce(everywhere)
    return here * distributed.get_world_size() / everywhere

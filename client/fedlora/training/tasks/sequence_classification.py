"""Single-label classification of texts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedlora.common.fates import CUT
from fedlora.training.data import Examples
from fedlora.training.tasks.classification import Classification
from fedlora.training.tasks.task import Batch


@dataclass(frozen=True, eq=False)
class PreparedTexts:
    """Texts as token ids, each as long as it is.

    Attributes:
        token_ids: n tensors int64 (num_tokens,).
        targets: int64 (n,).
        fates: by code, how many texts are cut.
    """

    token_ids: list[Tensor]
    targets: Tensor
    fates: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)


class SequenceClassification(Classification):
    """Texts, tokenised once and padded to the longest of their batch."""

    def __init__(
        self,
        *,
        tokenize: Callable[[list[str]], list[list[int]]],
        pad_token_id: int,
        count_cut: Callable[[list[str]], int] = lambda _texts: 0,
    ) -> None:
        """`tokenize` gives each text's token ids with the model's special tokens, cut to the run's length.

        `count_cut` says how many of some texts are longer than that.
        """
        self._tokenize = tokenize
        self._count_cut = count_cut
        self._pad_token_id = pad_token_id

    def prepare(self, examples: Examples) -> PreparedTexts:
        """Return the texts' token ids; an empty text of a model without special ones is one padding token."""
        texts = [str(text) for text in examples.inputs]
        token_ids = [torch.tensor(ids or [self._pad_token_id]) for ids in (self._tokenize(texts) if texts else [])]
        # Whatever is cut is as long as the longest of what is left.
        longest = max((len(ids) for ids in token_ids), default=0)
        at_limit = [text for text, ids in zip(texts, token_ids, strict=True) if len(ids) == longest]
        num_cut = self._count_cut(at_limit) if at_limit else 0
        return PreparedTexts(token_ids, torch.tensor(examples.labels), {CUT: num_cut} if num_cut else {})

    def collate(self, prepared: PreparedTexts, indices: np.ndarray, *, device: torch.device | str = "cpu") -> Batch:
        """Return `input_ids` and `attention_mask` (batch_size, longest), and the labels."""
        chosen = [prepared.token_ids[index] for index in indices]
        input_ids = pad_sequence(chosen, batch_first=True, padding_value=self._pad_token_id)
        lengths = torch.tensor([len(ids) for ids in chosen])
        attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return Batch(
            {name: tensor.to(device) for name, tensor in inputs.items()},
            prepared.targets[torch.from_numpy(indices)].to(device),
        )

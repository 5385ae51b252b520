"""What can be read of a client's examples: in its update, by a server, and in what a run ends in, by anybody.

    labels          what a client holds of each label, in how the bias of the head has moved
    tokens          of a text, and
    a picture       in how the first adapted layers' A has moved (`input_span`)
    membership      whether an example was trained on, in the final adapter's loss on it

An A that is trained moves by a sum over its inputs: dA = -rate * scaling * sum_t (B^T g_t) x_t^T, with x_t what the
layer is given for token t and g_t the gradient at what it returns. The rows of dA lie in the span of the inputs,
however many steps of plain SGD there were, and span all of it where these layers have rows enough. What the first
layers are given depends on nothing that is trained: a token's embedding, or an affine image of a patch's pixels. So a
server tries every token (DAGER, arXiv 2405.15586), and solves a linear equation for the pixels.

At B = 0, as LoRA begins, A does not move, and nothing is read. A server that sends another start has it move
(`crafted_start`): with A = 0 the model is what it was, and an update of A is not rounded against A.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedlora.adapters import Adapter

Numbers = npt.NDArray[np.float64]
_HEAD_BIAS = "classification_head.bias"
# Singular directions of dA that are smaller are rounding.
_LEAST_SINGULAR = 1e-6
_TOKENS_AT_ONCE = 1024
_PIXELS_AT_ONCE = 64


def label_shares(update: Adapter, start: Adapter) -> Numbers:
    """Return what share of its training a client had of each label, (num_labels,), as its update tells.

    The gradient of the bias is the mean of what the model says less what is true: labels that a client has rise and
    those that it lacks fall, alike whatever the optimiser. Those that fall most are taken for absent.
    """
    change = (update.dense[_HEAD_BIAS] - start.dense[_HEAD_BIAS]).double().numpy()
    raised = change - change.min()
    return raised / raised.sum() if raised.any() else np.full(len(change), 1 / len(change))


def overlap(shares: Numbers, others: Numbers) -> float:
    """Return how much of two distributions is common: 1 less their total variation."""
    return float(np.minimum(shares, others).sum())


@torch.no_grad()
def crafted_start(start: Adapter, *, seed: int = 0) -> Adapter:
    """Return the start that a malicious server would send: A = 0 and a random B; the model is what it was."""
    draw = torch.Generator().manual_seed(seed)
    layers = {
        path: replace(layer, A=torch.zeros_like(layer.A), B=torch.randn(layer.B.shape, generator=draw))
        for path, layer in start.layers.items()
    }
    return replace(start, layers=layers)


@dataclass(frozen=True, eq=False)
class FirstLayers:
    """The adapted layers that depend on nothing that is trained, and what they are given.

    Attributes:
        paths: of those that are given the same, such as a block's query and value.
        norm: the norm that gives it to them.
        before_norm: returns, for a model's inputs, what that norm is given, (batch_size, tokens, width).
    """

    paths: tuple[str, ...]
    norm: nn.LayerNorm
    before_norm: Callable[[Mapping[str, Tensor]], Tensor]

    def given(self, before: Tensor) -> Tensor:
        """Return what the layers are given, in float64, where the norm is given `before`, (..., width)."""
        return _float64(self.norm)(before)


class _Reached(Exception):  # noqa: N818 (no error: what is behind this layer is of no interest)
    pass


@torch.no_grad()
def first_layers(module: nn.Module, paths: Sequence[str], example: Mapping[str, Tensor]) -> FirstLayers:
    """Return which of the adapted layers of `paths` come first, with a norm before them, as in BERT and in ViTs.

    Args:
        module: the base model, without an adapter.
        example: its inputs, of one example.

    Raises:
        ValueError: nothing normalises what they are given.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.LayerNorm)]
    given: dict[str, int] = {}
    normed: dict[int, nn.LayerNorm] = {}
    kept = []

    def note_norm(norm: nn.Module, _given: object, result: Tensor) -> None:
        kept.append(result)  # or its place in memory would be given to another
        normed[result.data_ptr()] = cast(nn.LayerNorm, norm)

    def note_given(path: str, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given.setdefault(path, inputs[0].data_ptr())

    hooks = [norm.register_forward_hook(note_norm) for norm in norms]
    for path in paths:
        hooks.append(module.get_submodule(path).register_forward_pre_hook(partial(note_given, path)))
    try:
        module.eval()(**example)
    finally:
        for hook in hooks:
            hook.remove()
    first = next(iter(given.values()))
    if first not in normed:
        raise ValueError(f"{next(iter(given))} is not given what a LayerNorm returns")
    norm = normed[first]
    alike = tuple(path for path, place in given.items() if place == first)
    return FirstLayers(alike, norm, lambda inputs: _before(module, norm, inputs))


@torch.no_grad()
def _before(module: nn.Module, norm: nn.LayerNorm, inputs: Mapping[str, Tensor]) -> Tensor:
    found: list[Tensor] = []

    def stop(_layer: nn.Module, given: tuple[Tensor]) -> None:
        found.append(given[0].double())
        raise _Reached

    hook = norm.register_forward_pre_hook(stop)
    try:
        module.eval()(**inputs)
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0]


def _float64(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    weight, bias = norm.weight.detach().double(), norm.bias.detach().double()

    def normalised(before: Tensor) -> Tensor:
        result: Tensor = nn.functional.layer_norm(before, norm.normalized_shape, weight, bias, norm.eps)
        return result

    return normalised


def input_span(update: Adapter, start: Adapter, paths: Sequence[str]) -> Tensor:
    """Return an orthonormal basis of what the rows of A of some layers moved along, (width, at most all ranks).

    It has no columns where A did not move.
    """
    rows = torch.cat([(update.layers[path].A - start.layers[path].A).double() for path in paths])
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    basis: Tensor = directions[sizes > _LEAST_SINGULAR * max(float(sizes[0]), 1e-30)].T
    return basis


@torch.no_grad()
def likely_tokens(spans: Sequence[Tensor], layers: FirstLayers, *, num_tokens: int, length: int) -> list[list[int]]:
    """Return for each update all tokens of the vocabulary, the likeliest to have been in a text first.

    Args:
        spans: of each update.
        num_tokens: of the vocabulary.
        length: the most tokens that a text has; each token is tried at each place.
    """
    begins = list(accumulate(span.shape[1] for span in spans[:-1]))
    nearest = torch.empty((len(spans), num_tokens), dtype=torch.float64)
    for begin in range(0, num_tokens, _TOKENS_AT_ONCE):
        # A text of one token in all places: what comes before the first norm of an encoder does not mix places.
        tokens = torch.arange(begin, min(begin + _TOKENS_AT_ONCE, num_tokens))
        ids = tokens[:, None].expand(-1, length)
        given = layers.given(layers.before_norm({"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
        along = (given @ torch.cat(list(spans), dim=1)).square()
        parts = torch.tensor_split(along, begins, dim=-1)
        inside = torch.stack([part.sum(-1) for part in parts]) / given.square().sum(-1)
        nearest[:, tokens] = 1 - inside.max(dim=2).values
    return [[int(token) for token in row.argsort(stable=True)] for row in nearest]


@dataclass(frozen=True, eq=False)
class PatchImages:
    """How the pixels of grey pictures come to the first norm: token t is given dark[t] + light[:, t]^T p, of its patch.

    Attributes:
        dark: (tokens, width), of a black picture.
        light: (pixels of a patch, tokens, width).
        patch: pixels of a patch's side.
        across: patches of a picture's side. They are the last across^2 tokens.
    """

    dark: Tensor
    light: Tensor
    patch: int
    across: int


@torch.no_grad()
def patch_images(layers: FirstLayers, normalised: Callable[[Tensor], Tensor], *, side: int, patch: int) -> PatchImages:
    """Return how a picture's pixels come to the first norm of a ViT.

    Args:
        normalised: returns `pixel_values` for grey pictures (n, side, side) of numbers from 0 to 1.
    """
    dark = layers.before_norm({"pixel_values": normalised(torch.zeros(1, side, side))})[0]
    pixels = torch.zeros(patch * patch, side, side)
    for pixel in range(patch * patch):
        pixels[pixel, pixel // patch :: patch, pixel % patch :: patch] = 1.0
    parts = (pixels[begin : begin + _PIXELS_AT_ONCE] for begin in range(0, len(pixels), _PIXELS_AT_ONCE))
    lit = [layers.before_norm({"pixel_values": normalised(part)}) for part in parts]
    return PatchImages(dark, torch.cat(lit) - dark, patch, side // patch)


@torch.no_grad()
def picture_in(span: Tensor, layers: FirstLayers, images: PatchImages) -> Tensor:
    """Return the grey picture, (side, side) of numbers from 0 to 1, that an update was made of, if it was one.

    Of patch t, the norm gives scale * gamma * centred(dark[t] + light[:, t]^T p) + beta, which is in the span. With
    projected(.) for what is outside of it, projected(gamma * centred(light[:, t]^T p)) + projected(beta) / scale =
    -projected(gamma * centred(dark[t])): linear in p and 1 / scale, and solved by least squares. Tokens before the
    patches depend on no pixel: they are known, and belong to the span.
    """
    gamma, beta = layers.norm.weight.detach().double(), layers.norm.bias.detach().double()
    num_known = len(images.dark) - images.across**2
    known = layers.given(images.dark[:num_known])
    basis, _ = torch.linalg.qr(torch.cat([span, known.T], dim=1))

    def projected(rows: Tensor) -> Tensor:
        left: Tensor = rows - (rows @ basis) @ basis.T
        return left

    def centred(rows: Tensor) -> Tensor:
        scaled: Tensor = gamma * (rows - rows.mean(-1, keepdim=True))
        return scaled

    patches = []
    for token in range(num_known, len(images.dark)):
        terms = projected(torch.cat([centred(images.light[:, token]), beta[None]]))
        wanted = -projected(centred(images.dark[token : token + 1]))
        patches.append(torch.linalg.lstsq(terms.T, wanted.T, driver="gelsd").solution[:-1, 0].clamp(0, 1))
    grid = torch.stack(patches).reshape(images.across, images.across, images.patch, images.patch)
    side = images.across * images.patch
    picture: Tensor = grid.transpose(1, 2).reshape(side, side)
    return picture


def likeness(picture: Tensor, other: Tensor) -> float:
    """Return the correlation of two pictures' pixels, 0 where one of them is of one tone."""
    first, second = (each.double().flatten() - each.double().mean() for each in (picture, other))
    sizes = float(first.norm() * second.norm())
    return float(first @ second) / sizes if sizes > 1e-9 else 0.0


@dataclass(frozen=True)
class Membership:
    """How well a threshold of the loss tells examples that were trained on from others.

    Attributes:
        auc: the chance that one that was trained on has the lower loss of the two; 0.5 is a guess.
        found: the share of those trained on that are told, where one in a hundred others is taken for one; 0.01 is a
            guess.
    """

    auc: float
    found: float


def membership(losses: Numbers, others: Numbers) -> Membership:
    """Return how well the losses of examples that were trained on, (n,), are told from those of others, (m,)."""
    lower = (losses[:, None] < others).mean() + 0.5 * (losses[:, None] == others).mean()
    return Membership(float(lower), float((losses < np.quantile(others, 0.01)).mean()))

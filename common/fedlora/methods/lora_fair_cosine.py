"""LoRA-FAIR with the paper's own objective, solved exactly.

Bian, Wang, Zhang, Xu: "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization
Refinement", ICCV 2025, arXiv 2411.14961:

    minimise  1 - cos(M, B' mean_A) + lambda |B' - mean_B|^2,    M = sum_i p_i B_i A_i.

The paper takes 1000 steps of SGD and an unsquared penalty; here the stationary point is found to
the last digit. The cosine is blind to scale: averaging shrinks the product when clients disagree,
and this objective cannot see it. `repairs_scale` multiplies B' by the factor that brings the product
closest to M. `solver = "sgd"` is the published way, for comparison only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fedlora.common.section import NonNegative, Positive
from fedlora.methods.method import Combined, Layer, Method

if TYPE_CHECKING:
    from torch import Tensor

_SCANNED_DECADES = 14  # below and above the largest eigenvalue of G
_SCANNED_PER_DECADE = 20
_NUM_BISECTIONS = 50  # a twentieth of a decade, down to the last bit of float64


class LoraFairCosine(Method):
    """The mean of A, and the mean of B turned towards M.

    Attributes:
        penalty: the paper's lambda on |dB|^2, as it is and not relative to anything. At 1 the optimum is
            practically the plain mean.
        repairs_scale: whether B' is multiplied by tau = <M, B' mean_A> / |B' mean_A|^2 in the end.
        solver: "exact", or "sgd": the published way, which forms full matrices.
        steps, learning_rate: of "sgd".
        start: standard deviation of the random dB that "sgd" starts from; 0 starts from zero.
        axis: of "sgd": the cosine of the whole matrices ("all"), or the mean over that of their "rows" or "columns".
    """

    name: ClassVar[str] = "lora_fair_cosine"
    title: ClassVar[str] = "LoRA-FAIR by the cosine"
    summary: ClassVar[str] = "the paper's own objective, solved exactly"

    penalty: NonNegative = Field(0.01, description="the paper's lambda; at 1 the result is practically the plain mean")
    repairs_scale: bool = Field(
        False, description="whether the result is scaled to the update, to which cosines are blind"
    )
    solver: Literal["exact", "sgd"] = Field(
        "exact", description="sgd: as published, for comparison; forms full matrices"
    )
    steps: int = Field(1000, ge=0, description="of sgd")
    learning_rate: Positive = Field(0.01, description="of sgd")
    start: NonNegative = Field(0.0, description="of sgd: standard deviation of the random start; 0 starts at the mean")
    axis: Literal["all", "rows", "columns"] = Field("all", description="of sgd: the cosine of all, or along an axis")

    @property
    def needs_every_pair(self) -> bool:
        """|M| is no sum over the clients."""
        return True

    def idle(self) -> dict[str, str]:
        """The exact solver takes no steps."""
        if self.solver == "sgd":
            return {}
        return dict.fromkeys(("steps", "learning_rate", "start", "axis"), 'it is for aggregation.solver = "sgd"')

    def combine(self, layer: Layer) -> Combined:
        """Return A = mean_A (rank, in_features) and B = B' (out_features, rank).

        Where the mean product does not point towards M at all, <M, mean_B mean_A> <= 0, there is no such minimum
        nearby; the means are returned, and the note says so. It also names the least-squares solution, which is
        returned where the objective only falls towards B' = 0.
        """
        from fedlora.algebra.gram import product_square
        from fedlora.methods.cosine_sgd import correct_by_sgd

        mean_A, mean_B = layer.mean_A.double(), layer.mean_B.double()
        P, Q = layer.every_pair().stacked_deviations()
        G = mean_A @ mean_A.T
        N = (P @ (Q @ layer.mean_A.T)).double()
        M_A = mean_B @ G + N
        # The order matters: of an overflow's NaN, max(0, NaN) would make a zero.
        square_M = max(product_square(P, Q) + float((mean_B * (M_A + N)).sum()), 0.0)
        if square_M == 0 or float((M_A * mean_B).sum()) <= 0:
            return Combined(layer.mean_A, layer.mean_B, note="the plain mean: it does not point towards the update")
        note = ""
        if self.solver == "sgd":
            M = layer.mean_B @ layer.mean_A + P @ Q
            B = correct_by_sgd(
                M,
                layer.mean_A,
                layer.mean_B,
                penalty=self.penalty,
                steps=self.steps,
                learning_rate=self.learning_rate,
                start=self.start,
                axis=self.axis,
            )
            tau = float((M_A * B.double()).sum() / ((B.double().T @ B.double()) * G).sum())
        else:
            B, tau, note = _solve(M_A, mean_A, mean_B, G, norm_M=math.sqrt(square_M), penalty=self.penalty)
        return Combined(layer.mean_A, B * tau if self.repairs_scale else B, note=note)

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the first rows of A, and B solved again for them."""
        from fedlora.algebra.low_rank import projected

        return projected(A, B, rank)


def _solve(
    M_A: Tensor, mean_A: Tensor, mean_B: Tensor, G: Tensor, *, norm_M: float, penalty: float
) -> tuple[Tensor, float, str]:
    """Return the best B' (out_features, rank) and its tau, all in float64, and a note where there is no best.

    The gradient is zero where B' = (M A^T + rho B_)(tau G + rho I)^-1 with tau = <M, X> / |X|^2,
    rho = 2 lambda |M| |X|, X = B' A_. With mu = rho / tau, t = 1 / tau and the eigenvectors V of G,

        B' V = (t Y + mu Z) / (w + mu),    Y = M A^T V,  Z = B_ V,

    and the first condition is a quadratic equation in t with one positive root, for any mu. What is
    left is one equation in mu. It is scanned over 28 decades, each change of sign is bisected, and the
    root with the least objective counts: that cannot diverge, where Newton's steps sometimes do.

    Args:
        M_A: M mean_A^T, (out_features, rank).
        G: mean_A mean_A^T.
    """
    import torch

    if penalty == 0:
        return _solve_without_penalty(M_A, mean_A, mean_B, G)
    w, V = torch.linalg.eigh(G)
    w = w.clamp_min(0)
    Y, Z = M_A @ V, mean_B @ V
    yy, yz, zz = Y.square().sum(0), (Y * Z).sum(0), Z.square().sum(0)

    def state(mu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return t, |X| and the objective at each mu, (n,)."""
        mu = mu[:, None]
        D = w + mu
        a, b, c = (yy / D**2).sum(1), (yz * (mu - w) / D**2).sum(1), (mu * w * zz / D**2).sum(1)
        root = (b.square() + 4 * a * c).sqrt()
        # Of the two forms of the root, the one in which nothing cancels.
        t = torch.where(b > 0, 2 * c / (b + root), (root - b) / (2 * a))
        B_square = (t[:, None].square() * yy + 2 * t[:, None] * mu * yz + mu.square() * zz) / D.square()
        dB_square = (t[:, None].square() * yy - 2 * t[:, None] * w * yz + w.square() * zz) / D.square()
        norm_X = (w * B_square).sum(1).clamp_min(0).sqrt()
        cosine = ((t[:, None] * yy + mu * yz) / D).sum(1) / (norm_M * norm_X)
        return t, norm_X, 1 - cosine + penalty * dB_square.sum(1)

    def excess(mu: Tensor) -> Tensor:
        t, norm_X, _ = state(mu)
        return mu / t - 2 * penalty * norm_M * norm_X

    exponents = torch.arange(-_SCANNED_DECADES * _SCANNED_PER_DECADE, _SCANNED_DECADES * _SCANNED_PER_DECADE + 1).to(w)
    grid = w[-1] * 10 ** (exponents / _SCANNED_PER_DECADE)
    is_above = excess(grid) > 0
    crossings = torch.nonzero(is_above[1:] != is_above[:-1]).flatten()
    if len(crossings) == 0:
        # A penalty beyond the scanned decades: the optimum is that without one, or the mean, to 14 digits.
        if is_above[0]:
            return _solve_without_penalty(M_A, mean_A, mean_B, G)
        crossings = torch.tensor([len(grid) - 2], device=w.device)
    low, high = grid[crossings].log(), grid[crossings + 1].log()
    low_is_above = is_above[crossings]
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        is_left = (excess(middle.exp()) > 0) != low_is_above
        low, high = torch.where(is_left, low, middle), torch.where(is_left, middle, high)
    mu = ((low + high) / 2).exp()
    t, _, objective = state(mu)
    best = int(objective.argmin())
    B = ((t[best] * Y + mu[best] * Z) / (w + mu[best])) @ V.T
    return B, float(1 / t[best]), ""


def _solve_without_penalty(M_A: Tensor, mean_A: Tensor, mean_B: Tensor, G: Tensor) -> tuple[Tensor, float, str]:
    """Return B', its tau and a note for the cosine alone, whose optimum is any positive multiple of M's projection.

    Of these it is the nearest to mean_B. Where they come nearer only by shrinking to nothing, it is the projection.
    """
    from fedlora.algebra.low_rank import RidgeSolver

    ridge = RidgeSolver(mean_A, ridge=0.0)
    B = ridge.solve(M_A)
    factor = float((B * mean_B).sum() / B.square().sum())
    note = "" if factor > 0 else "least squares: the cosine's best B points away from the mean of B"
    B = B * factor if factor > 0 else B
    # What A multiplies by zero does not show in the product, and zero there would be dead in both factors.
    B = B + mean_B @ ridge.unseen @ ridge.unseen.T
    return B, float((M_A * B).sum() / ((B.T @ B) * G).sum()), note

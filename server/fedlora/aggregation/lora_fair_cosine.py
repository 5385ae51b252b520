"""LoRA-FAIR with the paper's own objective, solved exactly.

Bian, Wang, Zhang, Xu: "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization
Refinement", ICCV 2025, arXiv 2411.14961:

    minimise  1 - cos(M, B' mean_A) + lambda |B' - mean_B|^2,    M = sum_i p_i B_i A_i.

The paper takes 1000 steps of SGD and an unsquared penalty; here the stationary point is found to
the last digit. The cosine is blind to scale: averaging shrinks the product when clients disagree,
and this objective cannot see it. `repairs_scale` multiplies B' by the factor that brings the product
closest to M. `solver = "sgd"` is the published way, for comparison only.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedlora.aggregation.cosine_sgd import Axis, correct_by_sgd
from fedlora.aggregation.gram import product_square
from fedlora.aggregation.lora_fair import require_not_negative
from fedlora.aggregation.low_rank import RidgeSolver, projected
from fedlora.aggregation.method import BOTH_FACTORS, Combined, RoundPlan
from fedlora.aggregation.updates import CentredUpdate

_SCANNED_DECADES = 14  # below and above the largest eigenvalue of G
_SCANNED_PER_DECADE = 20
_NUM_BISECTIONS = 50  # a twentieth of a decade, down to the last bit of float64


@dataclass(frozen=True)
class LoraFairCosine:
    """The mean of A, and the mean of B turned towards M.

    Attributes:
        penalty: the paper's lambda on |dB|^2, as it is and not relative to anything. At 1 the optimum is
            practically the plain mean.
        repairs_scale: whether B' is multiplied by tau = <M, B' mean_A> / |B' mean_A|^2 in the end.
        solver: "exact", or "sgd": the published way, which forms full matrices.
        steps, learning_rate: of "sgd".
        start: standard deviation of the random dB that "sgd" starts from; 0 starts from zero.
        axis: of "sgd": the cosine of the whole matrices ("all"), or the mean over that of their "rows" or "columns".

    Raises:
        ValueError: a setting is negative or not finite, or not one of the words above.
    """

    name: ClassVar[str] = "lora_fair_cosine"
    changes_base: ClassVar[bool] = False
    penalty: float = 0.01
    repairs_scale: bool = False
    solver: Literal["exact", "sgd"] = "exact"
    steps: int = 1000
    learning_rate: float = 0.01
    start: float = 0.0
    axis: Axis = "all"

    def __post_init__(self) -> None:
        require_not_negative(penalty=self.penalty, learning_rate=self.learning_rate, start=self.start, steps=self.steps)
        for name, value, expected in (
            ("solver", self.solver, ("exact", "sgd")),
            ("axis", self.axis, ("all", "rows", "columns")),
        ):
            if value not in expected:
                raise ValueError(f"{name} is {value!r}; expected {' or '.join(map(repr, expected))}")

    def plan(self, _round: int, /) -> RoundPlan:
        """Clients train both factors in every round."""
        return BOTH_FACTORS

    def combine(self, update: CentredUpdate) -> Combined:
        """Return A = mean_A (rank, in_features) and B = B' (out_features, rank).

        It takes the memory of all clients' pairs of this layer, for |M|. Where the mean product does
        not point towards M at all, <M, mean_B mean_A> <= 0, there is no such minimum nearby; the means are
        returned, and the note says so. It also names the least-squares solution, which is returned where the
        objective only falls towards B' = 0.
        """
        mean_A, mean_B = update.mean_A.double(), update.mean_B.double()
        P, Q = update.stacked()
        G = mean_A @ mean_A.T
        N = (P @ (Q @ update.mean_A.T)).double()
        M_A = mean_B @ G + N
        # The order matters: of an overflow's NaN, max(0, NaN) would make a zero.
        square_M = max(product_square(P, Q) + float((mean_B * (M_A + N)).sum()), 0.0)
        if square_M == 0 or float((M_A * mean_B).sum()) <= 0:
            return Combined(update.mean_A, update.mean_B, note="the plain mean: it does not point towards the update")
        note = ""
        if self.solver == "sgd":
            M = update.mean_B @ update.mean_A + P @ Q
            B = correct_by_sgd(
                M,
                update.mean_A,
                update.mean_B,
                penalty=self.penalty,
                steps=self.steps,
                learning_rate=self.learning_rate,
                start=self.start,
                axis=self.axis,
            )
            tau = float((M_A * B.double()).sum() / ((B.double().T @ B.double()) * G).sum())
        else:
            B, tau, note = _solve(M_A, mean_A, mean_B, G, norm_M=math.sqrt(square_M), penalty=self.penalty)
        return Combined(update.mean_A, B * tau if self.repairs_scale else B, note=note)

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the first rows of A, and B solved again for them."""
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
    ridge = RidgeSolver(mean_A, ridge=0.0)
    B = ridge.solve(M_A)
    factor = float((B * mean_B).sum() / B.square().sum())
    note = "" if factor > 0 else "least squares: the cosine's best B points away from the mean of B"
    B = B * factor if factor > 0 else B
    # What A multiplies by zero does not show in the product, and zero there would be dead in both factors.
    B = B + mean_B @ ridge.unseen @ ridge.unseen.T
    return B, float((M_A * B).sum() / ((B.T @ B) * G).sum()), note

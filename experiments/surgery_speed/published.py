"""SparseGPT and GPTQ in PyTorch as their authors' programs do it, for one matrix W `[out, in]` in W's dtype.

Source: Frantar & Alistarh, "SparseGPT", 2023, algorithm 1, and Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", 2022,
algorithm 1; the steps, the order of the operations and the thresholds are those of their programs (`fasterprune`,
`fasterquant`). What those only log, the losses, is left out.
"""

from collections.abc import Callable

import torch

Rule = Callable[[torch.Tensor, torch.Tensor], Callable[[int], Callable[[torch.Tensor], torch.Tensor]]]
"""(weights of a block, its diagonal of U) -> (column -> (weights of the column -> what they become))."""


def sparsegpt(weights: torch.Tensor, hessian: torch.Tensor, *, sparsity: float, block: int = 128) -> torch.Tensor:
    """W after pruning; each block loses the weights up to and with its quantile, one more than asked for."""

    def rule(part: torch.Tensor, diagonal: torch.Tensor) -> Callable[[int], Callable[[torch.Tensor], torch.Tensor]]:
        score = part**2 / diagonal.reshape(1, -1) ** 2
        gone = score <= torch.sort(score.flatten())[0][int(score.numel() * sparsity)]
        return lambda i: lambda column: column.masked_fill(gone[:, i], 0)

    return _swept(weights, hessian, rule, block)


def gptq(weights: torch.Tensor, hessian: torch.Tensor, *, bits: int, block: int = 128) -> torch.Tensor:
    """W rounded to 2^bits points from least to greatest of each output, zero included; one grid for a whole output."""
    most = 2**bits - 1
    low, high = weights.amin(1).clamp(max=0), weights.amax(1).clamp(min=0)
    scale = (high - low) / most
    zero = torch.round(-low / scale)

    def rounded(column: torch.Tensor) -> torch.Tensor:
        return scale * (torch.clamp(torch.round(column / scale) + zero, 0, most) - zero)

    return _swept(weights, hessian, lambda *_: lambda _: rounded, block)


def _swept(weights: torch.Tensor, hessian: torch.Tensor, rule: Rule, block: int) -> torch.Tensor:
    """W after all columns were visited in order, the later ones moved to make up for each."""
    W, U = weights.clone(), _inverse_root(weights, hessian)
    W[:, torch.diag(hessian) == 0] = 0
    for first in range(0, W.shape[1], block):
        last = min(first + block, W.shape[1])
        part, inside = W[:, first:last].clone(), U[first:last, first:last]
        done, errors = torch.zeros_like(part), torch.zeros_like(part)
        become = rule(part, torch.diag(inside))
        for i in range(last - first):
            column = part[:, i]
            done[:, i] = become(i)(column)
            error = (column - done[:, i]) / inside[i, i]
            part[:, i:] -= error.unsqueeze(1).matmul(inside[i, i:].unsqueeze(0))
            errors[:, i] = error
        W[:, first:last] = done
        W[:, last:] -= errors.matmul(U[first:last, last:])
    return W


def _inverse_root(weights: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """U upper triangular, inv(H + 0.01 mean(diag H) I) = U'U."""
    H = hessian.clone()
    every = torch.arange(weights.shape[1])
    dead = torch.diag(H) == 0
    H[dead, dead] = 1
    H[every, every] += 0.01 * torch.mean(torch.diag(H))
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)

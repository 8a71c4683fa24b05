"""Ghost batch norm (Hoffer et al. 2017, arXiv:1705.08741; TabNet, arXiv:1908.07442; Qlib's GBN) in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def chunk_sizes(rows: int, virtual_batch_size: int) -> list[int]:
    """Rows of each virtual batch: those of `torch.chunk(x, rows // virtual_batch_size)`, except that a last chunk of one row,
    which has no variance, joins the one before it."""
    if rows <= virtual_batch_size:
        return [rows]
    pieces = rows // virtual_batch_size
    size = -(-rows // pieces)
    sizes = [size] * (rows // size) + ([rows % size] if rows % size else [])
    if len(sizes) > 1 and sizes[-1] == 1 and size > 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def ghost_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    linear_bias: Tensor | None,
    virtual_batch_size: int,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y [B, F]; mean and reciprocal deviation of each of the C chunks [C, F]; running statistics after all of them [F]."""
    statistics_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x32 = x.to(statistics_dtype)
    if not training:
        mean = running_mean.to(statistics_dtype).reshape(1, -1)  # [1, F]
        if linear_bias is not None:
            mean = mean - linear_bias.to(statistics_dtype)
        rstd = (running_var.to(statistics_dtype).reshape(1, -1) + eps).rsqrt()
        y = (x32 - mean) * rstd
        new_mean = new_var = x.new_empty(0, dtype=statistics_dtype)
    else:
        normalised, means, rstds = [], [], []
        new_mean, new_var = running_mean, running_var
        for chunk in x32.split(chunk_sizes(x.shape[0], virtual_batch_size)):  # [rows of the chunk, F]
            var, mean = torch.var_mean(chunk, dim=0, correction=0)  # [F], [F]
            rstd = (var + eps).rsqrt()
            normalised.append((chunk - mean) * rstd)
            means.append(mean)
            rstds.append(rstd)
            if running_mean is not None:
                unbiased = var.detach() * (chunk.shape[0] / (chunk.shape[0] - 1))
                seen = mean.detach() if linear_bias is None else mean.detach() + linear_bias.detach()
                new_mean = new_mean + momentum * (seen - new_mean)
                new_var = new_var + momentum * (unbiased - new_var)
        if running_mean is None:
            new_mean = new_var = x.new_empty(0, dtype=statistics_dtype)
        y, mean, rstd = torch.cat(normalised), torch.stack(means), torch.stack(rstds)
        if linear_bias is not None:
            y = y + 0 * linear_bias  # the norm cancels it: part of the graph, with a gradient of exactly zero
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(x.dtype), mean, rstd, new_mean, new_var

"""WUDI: each task vector without what other tasks would see of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from evomerge.kernels import Fused, Operands
from evomerge.methods.matrices import LAMBDA, WEIGHT, merged_matrices
from evomerge.methods.method import MergeMethod, Parameters

# How strongly the sum of the task vectors is kept, beside the mean energy of the inputs' directions: nothing of it is
# seen where tasks have inputs, it decides where none has, and it keeps the equations soluble in float64.
_DAMPING = 1e-6


def _wudi(operands: Operands, parameters: Parameters) -> Fused:
    return merged_matrices(operands, parameters, "wudi", partial(_task_matrices, operands))


def _task_matrices(operands: Operands, active: Sequence[int]) -> list[Tensor]:
    """Returns each task's part of the merged matrix, at a weight of 1."""
    rows, columns = operands.shape
    norms = [float(np.sqrt(operands.gram()[model, model])) for model in active]
    damping = _DAMPING * len(active) / columns
    # The equations are as many as the matrix has columns, or all tasks together have rows: the fewer are solved.
    solve = _by_columns if columns <= rows * len(active) else _by_rows
    return solve(operands, active, norms, damping)


def _unit(operands: Operands, model: int, norm: float) -> Tensor:
    """Returns tau_i / |tau_i|, float64; zeros where it has no length."""
    delta = operands.whole_delta(model).double()
    return delta.div_(norm) if norm > 0 else delta


def _by_columns(operands: Operands, active: Sequence[int], norms: Sequence[float], damping: float) -> list[Tensor]:
    units = [_unit(operands, model, norm) for model, norm in zip(active, norms, strict=True)]
    grams = [unit.T @ unit for unit in units]
    total = torch.stack(grams).sum(dim=0)
    factor = torch.linalg.cholesky(_damped(total, damping))
    found = []
    for unit, gram, norm in zip(units, grams, norms, strict=True):
        # tau_i - tau_i (sum over j other than i of G_j) (H + delta)^-1
        others = torch.cholesky_solve(total - gram, factor).T
        found.append((unit - unit @ others).mul_(norm).float())
    return found


def _by_rows(operands: Operands, active: Sequence[int], norms: Sequence[float], damping: float) -> list[Tensor]:
    rows = operands.shape[0]
    units = torch.cat([_unit(operands, model, norm) for model, norm in zip(active, norms, strict=True)])
    products = units @ units.T
    # (A^T A + delta)^-1 A^T = A^T (A A^T + delta)^-1, A being all task vectors, one below the other
    solved = torch.cholesky_solve(units, torch.linalg.cholesky(_damped(products, damping)))
    found = []
    for index, norm in enumerate(norms):
        own = slice(index * rows, (index + 1) * rows)
        seen = products[own].clone()
        seen[:, own] = 0
        found.append((units[own] - seen @ solved).mul_(norm).float())
    return found


def _damped(products: Tensor, damping: float) -> Tensor:
    return products + damping * torch.eye(len(products), dtype=products.dtype, device=products.device)


WUDI = MergeMethod(
    name="wudi",
    summary="The matrix that least disturbs what each task vector makes of its own task's inputs.",
    paper="https://arxiv.org/abs/2503.08099",
    parameters=(WEIGHT, LAMBDA),
    merge=_wudi,
    kept_bytes=4,
)
"""B + lambda tau, tau least interfering with the tasks, for matrices; else B + lambda times the mean of w_i d_i.

A linear layer's task vector tau_i spans, by its rows, the inputs that its task was trained on; the
interference of a merged tau with the tasks is the loss

    L(tau) = sum of 1 / |tau_i|^2 |(tau - w_i tau_i) tau_i^T|^2

(norms of Frobenius; the paper has w_i = 1). The paper goes down from the sum of the tau_i by 300 steps of Adam. Here
is the minimum itself, in one step: with G_i = tau_i^T tau_i / |tau_i|^2 and H the sum of the G_i,

    tau = sum of w_i (tau_i - tau_i (H - G_i) (H + delta)^-1),

each task vector without what the others' inputs see of it. delta, a millionth of H's mean eigenvalue, keeps the sum
of the task vectors where no task has inputs, which is where descent would have left it too. The parts of the tasks
do not depend on weights and are made once.
Cheng et al. 2025, WUDI-Merging, https://arxiv.org/abs/2503.08099
"""

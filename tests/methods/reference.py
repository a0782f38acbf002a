"""Slow twins of the merge methods in float64, written from the papers' definitions with numpy alone.

A twin takes the arguments of a method as numpy arrays, and returns float64; NaN marks an element whose value
hangs on rounding (its models' votes cancel to the last bits), which a comparison leaves out.

Which elements are large, or agree, hangs on the last bit, so a twin first forms the float32 task vector that
the method sees; everything after that is float64.
"""

# ruff: noqa: ARG001 - all twins have one signature

import math

import numpy as np


def linear(tensors, base, shared, models, noise):
    weights = [own["weight"] for own in models]
    total = sum(w * x.astype(np.float64) for w, x in zip(weights, tensors, strict=True))
    if shared["normalize"]:
        total = total / sum(weights)
    return total


def slerp(tensors, base, shared, models, noise):
    t = shared["t"]
    v0, v1 = base.astype(np.float64), tensors[0].astype(np.float64)
    flat0, flat1 = v0.ravel(), v1.ravel()
    norm0, norm1 = np.linalg.norm(flat0), np.linalg.norm(flat1)
    unit0 = flat0 / norm0 if norm0 > 1e-8 else flat0
    unit1 = flat1 / norm1 if norm1 > 1e-8 else flat1
    cosine = float(np.dot(unit0, unit1))
    if abs(cosine) > 0.9995:
        return (1 - t) * v0 + t * v1
    theta = np.arccos(cosine)
    return np.sin((1 - t) * theta) / np.sin(theta) * v0 + np.sin(t * theta) / np.sin(theta) * v1


def passthrough(tensors, base, shared, models, noise):
    return tensors[0].astype(np.float64) * models[0]["scale"]


def keep_all(delta, own, noise):
    return np.ones(delta.shape, bool)


def keep_largest(delta, own, noise):
    """The k largest magnitudes by sorting; of equals, the lowest index first."""
    rho, n = own["density"], delta.size
    if rho >= 1:
        return np.ones(delta.shape, bool)
    if rho <= 0 or n == 0:
        return np.zeros(delta.shape, bool)
    k = max(1, math.floor(rho * n))
    magnitudes = np.abs(delta).ravel().tolist()
    order = sorted(range(n), key=lambda index: (-magnitudes[index], index))
    kept = np.zeros(n, bool)
    kept[order[:k]] = True
    return kept.reshape(delta.shape)


LEVELS = 32768  # random numbers are whole, from 0 up to this


def keep_random(delta, own, noise):
    rho = own["density"]
    if not 0 < rho < 1:
        return np.full(delta.shape, rho >= 1)
    return noise < max(1, round(rho * LEVELS))


def keep_by_rank(delta, own, noise):
    """Each element by a chance of rho - epsilon + 2 epsilon (r - 1)/(n - 1), r its rank in its row."""
    rho, epsilon = own["density"], own["epsilon"]
    if not 0 < rho < 1:
        return np.full(delta.shape, rho >= 1)
    rows = np.abs(delta) if delta.ndim > 1 else np.abs(delta).reshape(1, -1)
    ranks = rows.argsort(axis=1, kind="stable").argsort(axis=1).astype(np.float64)
    n = rows.shape[1]
    relative = ranks / (n - 1) if n > 1 else np.full(rows.shape, 0.5)
    # The chance moves to the random number, in whole levels, so that one cut serves all elements.
    moved = np.rint(relative.reshape(delta.shape) * (-2 * epsilon * LEVELS) + epsilon * LEVELS + noise)
    return moved < max(1, round(rho * LEVELS))


def keep_all_but_outliers(delta, own, noise):
    """floor(rho N) of them, without the floor(gamma N) largest where so many are left."""
    rho, n = own["density"], delta.size
    if rho >= 1:
        return np.ones(delta.shape, bool)
    if rho <= 0:
        return np.zeros(delta.shape, bool)
    count = math.floor(rho * n)
    top = min(math.floor(own["gamma"] * n), n - count)
    magnitudes = np.abs(delta).ravel().tolist()
    order = sorted(range(n), key=lambda index: (-magnitudes[index], index))
    kept = np.zeros(n, bool)
    kept[order[top : top + count]] = True
    return kept.reshape(delta.shape)


def family(keep, consensus):
    """The task-arithmetic family, step by step as numbered in its definition."""

    def twin(tensors, base, shared, models, noise):
        weights = [own["weight"] for own in models]
        weighted = []
        for source, (x, own) in enumerate(zip(tensors, models, strict=True)):
            d = (x - base).astype(np.float64)  # 1
            thinned = np.where(keep(d, own, noise(source)), d, 0.0)  # 2
            if shared.get("rescale"):
                before, after = np.abs(d).sum(), np.abs(thinned).sum()
                if before >= 1e-7 and after >= 1e-7:
                    thinned = thinned * (before / after)
            weighted.append(own["weight"] * thinned)  # 3
        stack = np.stack(weighted)
        total = stack.sum(axis=0)
        if consensus:  # 4
            sign = np.where(total >= 0, 1.0, -1.0)
            agree = np.sign(stack) == sign
            mixed = np.where(agree, stack, 0.0).sum(axis=0)
            each = np.array(weights).reshape((-1,) + (1,) * base.ndim)
            divisor = np.where(agree, each, 0.0).sum(axis=0)
            divisor = np.where(divisor == 0, 1.0, divisor)
            votes = np.abs(stack).sum(axis=0)
            close = (votes > 0) & (np.abs(total) < 1e-6 * votes)
            exact = (total == 0) & (not shared.get("rescale"))
            mixed = np.where(close & ~exact, np.nan, mixed)
        else:
            mixed = total
            divisor = 1.0 if abs(sum(weights)) < 1e-8 else sum(weights)
        if shared["normalize"]:  # 5
            mixed = mixed / divisor
        return base + shared["lambda"] * mixed  # 6, 7

    return twin


TWINS = {
    "linear": linear,
    "slerp": slerp,
    "task_arithmetic": family(keep_all, consensus=False),
    "ties": family(keep_largest, consensus=True),
    "dare_linear": family(keep_random, consensus=False),
    "dare_ties": family(keep_random, consensus=True),
    "della": family(keep_by_rank, consensus=True),
    "della_linear": family(keep_by_rank, consensus=False),
    "breadcrumbs": family(keep_all_but_outliers, consensus=False),
    "breadcrumbs_ties": family(keep_all_but_outliers, consensus=True),
    "passthrough": passthrough,
}

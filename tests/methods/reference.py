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
    return tensors[0].astype(np.float64) * models[0]["scale"] + models[0]["shift"]


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


LEVELS = 31616  # random numbers are whole, from 0 up to this


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


def along_arc(v0, v1, t):
    """From one vector to another; the norms are at least 1e-7, and a line is what float32 sees as one."""
    unit0, unit1 = (v / max(np.linalg.norm(v), 1e-7) for v in (v0, v1))
    cosine = np.clip((unit0 * unit1).sum(), -1, 1)
    if 1 - cosine**2 <= 1e-8:
        return (1 - t) * v0 + t * v1
    theta = np.arccos(cosine)
    return (np.sin((1 - t) * theta) * v0 + np.sin(t * theta) * v1) / np.sin(theta)


def nuslerp(tensors, base, shared, models, noise):
    first, second = (own["weight"] for own in models)
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
    origin = 0 if base is None else base.astype(np.float64)
    v0, v1 = (x.astype(np.float64) - origin for x in tensors)
    if shared["nuslerp_flatten"] or v0.ndim < 2:
        return origin + along_arc(v0.ravel(), v1.ravel(), t).reshape(v0.shape)
    axis = 0 if shared["nuslerp_row_wise"] else -1
    v0, v1 = np.moveaxis(v0, axis, -1), np.moveaxis(v1, axis, -1)
    merged = np.empty_like(v0)
    for place in np.ndindex(v0.shape[:-1]):
        merged[place] = along_arc(v0[place], v1[place], t)
    return origin + np.moveaxis(merged, -1, axis)


def multislerp(tensors, base, shared, models, noise):
    """With the tangents and the exponential map in full."""
    if len(tensors) == 1:
        return tensors[0].astype(np.float64)
    weights, eps = np.array([own["weight"] for own in models]), shared["eps"]
    if shared["normalize_weights"]:
        weights = weights / weights.sum()
    origin = 0 if base is None else base.astype(np.float64)
    vectors = [(x.astype(np.float64) - origin).ravel() for x in tensors]
    norms = np.array([np.linalg.norm(v) for v in vectors])
    units = [v / (norm + eps) if norm + eps > 0 else v for v, norm in zip(vectors, norms, strict=True)]
    mu = sum(w * u for w, u in zip(weights, units, strict=True))
    length = np.linalg.norm(mu)
    if length < max(eps, 1e-7):
        merged = sum(w * v for w, v in zip(weights, vectors, strict=True))
    else:
        mu = mu / length
        tangent = sum(w * (u - (u * mu).sum() * mu) for w, u in zip(weights, units, strict=True))
        tau = np.linalg.norm(tangent) + eps
        merged = (np.cos(tau) * mu + tangent * (np.sin(tau) / tau if tau else 1)) * (weights * norms).sum()
    return origin + merged.reshape(tensors[0].shape)


def karcher(tensors, base, shared, models, noise):
    tol, shape = shared["tol"], tensors[0].shape
    if len(tensors) == 1:
        return tensors[0].astype(np.float64)
    vectors = [x.astype(np.float64).ravel() for x in tensors]
    norms = [np.linalg.norm(v) for v in vectors]
    units = [v / norm for v, norm in zip(vectors, norms, strict=True) if norm > tol]
    if not units:
        return np.zeros(shape)
    u = sum(units) / len(units)
    u = units[0] if np.linalg.norm(u) <= tol else u / np.linalg.norm(u)
    for _ in range(int(shared["max_iter"])):
        v = np.zeros_like(u)
        for unit in units:
            theta = np.arccos(np.clip((u * unit).sum(), -1, 1))
            if theta >= tol and np.sin(theta) >= 1e-6:
                v += theta / np.sin(theta) * (unit - np.cos(theta) * u) / len(units)
        size = np.linalg.norm(v)
        if size < tol or size == 0:
            break
        u = np.cos(size) * u + np.sin(size) * v / size
        u /= np.linalg.norm(u)
    return (np.mean(norms) * u).reshape(shape)


def nearswap(tensors, base, shared, models, noise):
    a, b = base.astype(np.float64), tensors[0].astype(np.float64)
    w = np.clip(shared["t"] / np.maximum(np.abs(a - b), 1e-6), 0, 1)
    return w * b + (1 - w) * a


def stock_ratio(deltas):
    n = len(deltas)
    cosines = []
    for i in range(n):
        for j in range(i):
            norms = np.linalg.norm(deltas[i]) * np.linalg.norm(deltas[j])
            cosines.append(np.clip((deltas[i] * deltas[j]).sum() / max(norms, 1e-6), -1, 1))
    c = np.mean(cosines)
    divisor = 1 + (n - 1) * c
    return 0.0 if abs(divisor) < 1e-6 else n * c / divisor


def model_stock(tensors, base, shared, models, noise):
    origin = base.astype(np.float64)
    deltas = [x.astype(np.float64) - origin for x in tensors]
    mean = sum(deltas) / len(deltas)
    if not shared["filter_wise"] or base.ndim < 2:
        return origin + stock_ratio([d.ravel() for d in deltas]) * mean
    ratio = np.empty(base.shape)
    for row in np.ndindex(base.shape[:-1]):
        ratio[row] = stock_ratio([d[row] for d in deltas])
    return origin + ratio * mean


def sce(tensors, base, shared, models, noise):
    deltas = np.stack([(x - base).astype(np.float64) for x in tensors])
    topk = shared["select_topk"]
    if topk < 1:
        mean = sum(deltas) / len(deltas)
        variance = (sum((d - mean) ** 2 for d in deltas) / len(deltas)).astype(np.float32)
        k = int(topk * np.count_nonzero(variance))
        flat = variance.ravel().tolist()
        order = sorted(range(len(flat)), key=lambda index: (-flat[index], index))
        selected = np.zeros(variance.size)
        selected[order[:k]] = 1
        deltas = deltas * selected.reshape(variance.shape)
    total = deltas.sum(axis=0)
    agree = np.sign(deltas) == np.where(total >= 0, 1.0, -1.0)
    squares = (deltas**2).reshape(len(deltas), -1).mean(axis=1)
    weights = np.full(len(deltas), 1 / len(deltas)) if squares.sum() < 1e-6 else squares / squares.sum()
    kept = weights.reshape((-1,) + (1,) * base.ndim) * agree
    votes = np.abs(deltas).sum(axis=0)
    close = (votes > 0) & (np.abs(total) < 1e-6 * votes) & (total != 0)
    merged = base + (deltas * kept).sum(axis=0) / np.maximum(kept.sum(axis=0), 1e-6)
    return np.where(close, np.nan, merged)


def arcee_fusion(tensors, base, shared, models, noise):
    def probabilities(x):
        powers = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True) + 1e-8

    rows, base_rows = np.atleast_1d(tensors[0]), np.atleast_1d(base)
    p, q = probabilities(rows), probabilities(base_rows)
    divergence = (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    divergence = np.where(divergence < 1e-14, 0, divergence)
    delta = rows - base_rows
    importance = (np.abs(delta) * divergence.astype(np.float32)).astype(np.float64)
    ascending = np.sort(importance.ravel())
    q1, median, q3 = (ascending[int(share * (ascending.size - 1))] for share in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (q3 - q1)
    merged = np.where(importance >= threshold, rows, base_rows).astype(np.float64)
    # The last bits of a divergence hang on the order of its sum.
    close = np.abs(importance - threshold) < 1e-6 * threshold
    return np.where(close, np.nan, merged).reshape(base.shape)


def reinforced(plus):
    def twin(tensors, base, shared, models, noise):
        deltas = np.stack([(x - base).astype(np.float64) for x in tensors])
        active = np.abs(deltas) > np.float32(shared["epsilon"])
        count = active.sum(axis=0)
        merged = base.astype(np.float64)
        for delta, own in zip(deltas, active, strict=True):
            alone, together = own & (count == 1), own & (count > 1)
            stretch = 1.0
            if plus:
                rho = together.sum() / max(alone.sum(), 1e-5)
                stretch = 1 + shared["r"] * np.clip(rho, 0, shared["alpha"])
            merged = merged + np.where(alone, delta * stretch, 0) + np.where(together, delta / np.maximum(count, 1), 0)
        return merged

    return twin


def task_matrices(tensors, base, models):
    """The task vectors of those that have a weight, and the weights."""
    deltas = [(x - base).astype(np.float64) for x in tensors]
    weights = [own["weight"] for own in models]
    return zip(*[(d, w) for d, w in zip(deltas, weights, strict=True) if w], strict=True)


def added_mean(base, deltas, weights, shared):
    return base + shared["lambda"] * sum(w * d for d, w in zip(deltas, weights, strict=True)) / len(deltas)


def tsv(tensors, base, shared, models, noise):
    deltas, weights = task_matrices(tensors, base, models)
    if base.ndim != 2:
        return added_mean(base, deltas, weights, shared)
    side = min(base.shape)
    k = min(side, max(1, int(shared["rank"] * side / len(deltas)))) if shared["rank"] else 0
    lefts, values, rights = [], [], []
    for delta, weight in zip(deltas, weights, strict=True):
        u, s, vt = np.linalg.svd(delta, full_matrices=False)
        if 0 < k < side and s[k] > 1e-6 * s[0] and s[k - 1] - s[k] < 1e-3 * s[0]:
            return np.full(base.shape, np.nan)  # Which vectors come first hangs on rounding.
        kept = (np.arange(side) < k) & (s > 1e-6 * s[0])
        lefts.append(u[:, kept])
        values.extend(weight * s[kept])
        rights.append(vt[kept].T)
    orthogonal = []
    for vectors in (np.hstack(lefts), np.hstack(rights)):
        p, d, qt = np.linalg.svd(vectors, full_matrices=False)
        if ((d > 1e-7) & (d < 1e-3)).any():
            return np.full(base.shape, np.nan)
        orthogonal.append(p[:, d > 1e-5] @ qt[d > 1e-5])
    left, right = orthogonal
    return base + shared["lambda"] * left @ np.diag(values) @ right.T


def iso_c(tensors, base, shared, models, noise):
    deltas, weights = task_matrices(tensors, base, models)
    if base.ndim != 2:
        return added_mean(base, deltas, weights, shared)
    u, s, vt = np.linalg.svd(sum(w * d for d, w in zip(deltas, weights, strict=True)), full_matrices=False)
    kept = s > 1e-6 * s[0]
    return base + shared["lambda"] * s.mean() * u[:, kept] @ vt[kept]


def wudi(tensors, base, shared, models, noise):
    """The equations of the loss's gradient, solved for the step from the sum of the task vectors."""
    deltas, weights = task_matrices(tensors, base, models)
    if base.ndim != 2:
        return added_mean(base, deltas, weights, shared)
    n = base.shape[1]
    start = sum(w * d for d, w in zip(deltas, weights, strict=True))
    hessian, gradient = 1e-6 * len(deltas) / n * np.eye(n), np.zeros(base.shape)
    for delta, weight in zip(deltas, weights, strict=True):
        square = (delta**2).sum()
        if square:
            hessian += delta.T @ delta / square
            gradient += (start - weight * delta) @ delta.T @ delta / square
    return base + shared["lambda"] * (start - np.linalg.solve(hessian, gradient.T).T)


TWINS = {
    "tsv": tsv,
    "iso_c": iso_c,
    "wudi": wudi,
    "linear": linear,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "nearswap": nearswap,
    "model_stock": model_stock,
    "sce": sce,
    "arcee_fusion": arcee_fusion,
    "ram": reinforced(plus=False),
    "ramplus_tl": reinforced(plus=True),
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

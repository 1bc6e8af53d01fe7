"""How far the policy is from the one that sampled, measured before any truncation.

Names of the figures are those of telemetry/metrics_schema.py.
"""

from __future__ import annotations

import numpy as np

MAX_LOG_RATIO = 300.0
"""Bound on the log ratio: exp() of more is no number once it is squared and summed in float64.

It is this large so that the figures show a policy that is far off.
"""


def divergence(log_pi: np.ndarray, log_mu: np.ndarray, age: np.ndarray) -> dict[str, float]:
    """Measure the ratio r = pi/mu over trained tokens: log_pi, log_mu float32 [N], age int [N].

    Tokens of age 0 differ by numerics alone, older ones by staleness too. k1 = -log r and
    k3 = r - 1 - log r both estimate KL(mu || pi) from samples of mu (Schulman 2020, "Approximating
    KL Divergence"). A figure over no token is left out.
    """
    if not len(log_pi):
        return {}
    log_r = log_pi.astype(np.float64) - log_mu.astype(np.float64)
    ratio = np.exp(np.minimum(log_r, MAX_LOG_RATIO))
    k3 = ratio - 1 - log_r
    figures = {
        "ratio_mean": ratio.mean(),
        "ratio_p01": np.quantile(ratio, 0.01),
        "ratio_p50": np.quantile(ratio, 0.5),
        "ratio_p99": np.quantile(ratio, 0.99),
        "ratio_max": ratio.max(),
        "effective_sample_size": effective_sample_size(np.exp(log_r - log_r.max())),
        "kl_k1": -log_r.mean(),
        "kl": k3.mean(),
    }
    is_new = age == 0
    for name, chosen in (("age0", is_new), ("old", age > 0)):
        if chosen.any():
            figures[f"ratio_{name}_p99"] = np.quantile(ratio[chosen], 0.99)
            figures[f"kl_{name}"] = k3[chosen].mean()
    if is_new.any():
        figures["mismatch_age0"] = np.abs(log_r[is_new]).mean()
    return {name: float(value) for name, value in figures.items()}


def token_ages(age: np.ndarray) -> dict[str, float]:
    """Measure how old the trained tokens are, age int [N].

    Tokens without a gradient count: they are trained on, too.
    """
    if not len(age):
        return {}
    return {
        "token_age_mean": float(age.mean()),
        "token_age_max": float(age.max()),
        "token_age0_share": float((age == 0).mean()),
    }


def effective_sample_size(weights: np.ndarray) -> float:
    """Return (sum w)^2 / (N sum w^2) of weights [N] (Kong 1992).

    It is 1 when all are equal, and 1/N when one outweighs all.
    """
    return float(weights.sum() ** 2 / (len(weights) * np.square(weights).sum()))

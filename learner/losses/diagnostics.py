"""How far the policy is from the one that sampled.

Everything before truncation; field names are those of telemetry/metrics_schema.py.
"""

from __future__ import annotations

import numpy as np

MAX_LOG_RATIO = 300.0
"""exp() of more is no number once it is squared and summed in float64.

A policy that is so far off is to be seen in the measures.
"""


def divergence(log_pi: np.ndarray, log_mu: np.ndarray, age: np.ndarray) -> dict[str, float]:
    """Measures of the ratio r = pi/mu over trained tokens: log_pi, log_mu float32 [N], age int [N].

    Tokens of age 0 differ by numerics alone, older ones by staleness too. k1 = -log r and k3 = r -
    1 - log r both estimate KL(mu || pi) from samples of mu (Schulman 2020, "Approximating KL
    Divergence"). A measure over no token is left out.
    """
    if not len(log_pi):
        return {}
    log_r = log_pi.astype(np.float64) - log_mu.astype(np.float64)
    ratio = np.exp(np.minimum(log_r, MAX_LOG_RATIO))
    new = age == 0
    old = age > 0
    measures = {
        "ratio_mean": ratio.mean(),
        **{f"ratio_p{q:02d}": np.quantile(ratio, q / 100) for q in (1, 50, 99)},
        "ratio_max": ratio.max(),
        "effective_sample_size": effective_sample_size(np.exp(log_r - log_r.max())),
        "kl_k1": -log_r.mean(),
        "kl": (ratio - 1 - log_r).mean(),
    }
    for name, part in (("age0", new), ("old", old)):
        if part.any():
            measures[f"ratio_{name}_p99"] = np.quantile(ratio[part], 0.99)
            measures[f"kl_{name}"] = (ratio[part] - 1 - log_r[part]).mean()
    if new.any():
        measures["mismatch_age0"] = np.abs(log_r[new]).mean()
    return {name: float(value) for name, value in measures.items()}


def token_ages(age: np.ndarray) -> dict[str, float]:
    """How old the trained tokens are, age int [N]: computed or not, for a token without a gradient
    is trained on too."""
    if not len(age):
        return {}
    return {
        "token_age_mean": float(age.mean()),
        "token_age_max": float(age.max()),
        "token_age0_share": float((age == 0).mean()),
    }


def effective_sample_size(weights: np.ndarray) -> float:
    """(sum w)^2 / (N sum w^2) of weights [N]: 1 when all are equal, 1/N when one outweighs all
    (Kong 1992)."""
    return float(weights.sum() ** 2 / (len(weights) * np.square(weights).sum()))

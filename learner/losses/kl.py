"""The divergence from a reference policy that `learner.kl_coef` weighs: KL(pi || ref).

The tokens were sampled by an older policy mu. With the importance weight w = pi/mu and
d = log(pi/ref), a token's estimate is w k3 with k3 = exp(-d) - 1 + d. It is never negative, and
unbiased (DeepSeek-AI 2025, DeepSeek-V3.2, arXiv 2512.02556, section 3.1). Its gradient is
w d grad(log pi), whose mean over mu is the gradient of KL(pi || ref).

Without the weight, and differentiated as it stands (GRPO), k3 has the gradient of KL(ref || pi)
instead, and that of neither on tokens of another policy (Tang and Munos 2025, arXiv 2506.09477).
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.ratio import log_ratio


def reference_kl(log_pi: Tensor, log_mu: Tensor, log_reference: Tensor) -> Tensor:
    """Return the estimate of each token [N]; log_pi alone has a gradient.

    Value and gradient are put together, since a bound on d must not stop the gradient: a policy far
    from its reference is pulled back.
    """
    with torch.no_grad():
        weight = torch.exp(log_ratio(log_pi, log_mu))
        difference = log_ratio(log_pi, log_reference)
        value = weight * (torch.exp(-difference) - 1 + difference)
        slope = weight * difference
    return value + slope * (log_pi - log_pi.detach())

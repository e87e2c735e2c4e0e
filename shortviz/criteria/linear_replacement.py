"""How badly one linear layer could stand in for the block (after Razzhigaev et al. 2024, arXiv 2405.12250).

||A X - Y||^2 / ||Y - mean Y||^2 for the best linear map A with bias from X = x^(start) to Y = x^(start+n): 0 where a
linear layer does all the block does, 1 where it does no better than a constant. A is ridge-regularised, fitted on the
sampled tokens of two rows of three and scored on those of the third: the seed library fits and scores on one token,
which measures nothing.

Dual form: with N sampled tokens the fit is an N x N system per start, and its predictions H Y reuse the same H for
every n. d x d moments for every pair would not fit in memory for a large model.
"""

from shortviz.criteria.base import Criterion, Tensor

RIDGE = 0.1
"""Ridge strength as a share of the mean diagonal of the kernel: of 1e-5 to 1 best for short blocks on rows that were
not fitted on, on two texts (benchmarks/linear_replacement.py)."""


def replacement_errors(states: Tensor, rows: Tensor, ridge: float = RIDGE) -> Tensor | None:
    """Return the relative error per scored row and pair, (scored rows, pairs), from states (tokens, L+1, hidden).

    Rows 2, 5, 8, ... are scored, the others fitted on. None where there are fewer than two rows of either kind.
    """
    import torch

    scored = rows % 3 == 2
    owners = rows[scored].unique()
    if len(owners) < 2 or len(rows[~scored].unique()) < 2:
        return None
    tokens, count, _ = states.shape
    centred = states - states[~scored].mean(0)
    fit, score = centred[~scored].contiguous(), centred[scored].contiguous()
    spread = (score - score.mean(0)).square().sum(-1, dtype=torch.float64).mean(0)
    member = (rows[scored][None] == owners[:, None]).double()
    member /= member.sum(1, keepdim=True)
    columns = []
    for start in range(count - 1):
        known, new = fit[:, start].double(), score[:, start].double()
        kernel = known @ known.T
        # The tiny term is for a boundary where all tokens are alike (a text of one word): the map is then a constant.
        kernel.diagonal().add_(ridge * kernel.diagonal().mean() + torch.finfo(kernel.dtype).tiny)
        weights = torch.linalg.solve(kernel, known @ new.T).T.to(states.dtype)
        missed = weights @ fit[:, start + 1 :].flatten(1) - score[:, start + 1 :].flatten(1)
        squared = missed.view(len(new), count - 1 - start, -1).square().sum(-1, dtype=torch.float64)
        columns.append(member @ squared / spread[start + 1 :])
    return torch.cat(columns, dim=1)


CRITERION = Criterion(
    name="linear_replacement",
    label="linear replacement",
    units="share of variance missed",
    low=0.0,
    high=float("inf"),
    tokens="all",
    source="after Razzhigaev et al. 2024, arXiv 2405.12250; ridge, fitted and scored on different rows",
    explanation="How badly the best single linear layer would predict what the block gives; 0 is perfectly.",
    from_sample=replacement_errors,
    order=6,
)

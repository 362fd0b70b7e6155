"""Running statistics against those of all numbers at once."""

from __future__ import annotations

import torch

from difftop.nn.running_norm import RunningNorm


def test_statistics_are_those_of_all_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 3, generator=generator, dtype=torch.float64) * 5 + i for i, n in enumerate((1, 7, 2, 40))]
    norm = RunningNorm(3).double()
    for batch in batches:
        norm.update(batch)
    seen = torch.cat(batches)
    torch.testing.assert_close(norm.mean, seen.mean(0))
    torch.testing.assert_close(norm.var, seen.var(0, unbiased=False))
    torch.testing.assert_close(norm(seen), (seen - seen.mean(0)) / (seen.var(0, unbiased=False) + 1e-6).sqrt())


def test_nothing_is_changed_before_the_first_batch_nor_by_one_that_is_not_finite() -> None:
    norm, x = RunningNorm(2), torch.tensor([[1.0, -3.0], [2.0, 5.0]])
    torch.testing.assert_close(norm(x), x, rtol=1e-5, atol=0)
    norm.update(x)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    norm.update(torch.tensor([[torch.nan, 0.0]]))
    norm.update(torch.tensor([[torch.inf, 0.0]]))
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())


def test_output_is_bounded() -> None:
    norm = RunningNorm(1, bound=3.0)
    norm.update(torch.tensor([[0.0], [1.0]]))
    assert norm(torch.tensor([[1e9], [-1e9]])).flatten().tolist() == [3.0, -3.0]

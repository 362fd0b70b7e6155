"""The sum tree against plain cumulative sums."""

import pytest
import torch

from difftop.data.sum_tree import SumTree


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 1024, 1025, 40_000])
def test_finding_equals_searching_the_cumulative_sum(size):
    generator = torch.Generator().manual_seed(size)
    tree, weight = SumTree(size), torch.zeros(size, dtype=torch.float64)
    for _ in range(4):
        index = torch.randint(size, (size,), generator=generator)[: size // 2 + 1].unique()
        new = torch.randint(0, 5, (len(index),), generator=generator).double()  # whole numbers: sums are exact, many are zero
        weight[index] = new
        tree.set(index, new)
    weight[-1] = 3.0
    tree.set(torch.tensor([size - 1]), torch.tensor([3.0]))
    assert float(tree.total) == float(weight.sum())
    assert float(tree.max()) == float(weight.max())
    u = torch.rand(2000, generator=generator, dtype=torch.float64)
    u[:3] = torch.tensor([0.0, 0.5, 1.0 - 2.0**-53])
    expected = torch.searchsorted(weight.cumsum(0), u * weight.sum(), right=True)
    expected[2] = size - 1  # where u * sum rounds to the sum itself; the last leaf has a weight
    assert torch.equal(tree.find(u), expected)


def test_never_finds_a_leaf_of_weight_zero():
    generator = torch.Generator().manual_seed(0)
    tree = SumTree(5000)
    index = torch.randperm(5000, generator=generator)[:50]
    tree.set(index, 10.0 ** torch.randint(-9, 9, (50,), generator=generator).double())  # sums that round
    edges = tree.get(torch.arange(5000)).cumsum(0) / tree.total
    u = torch.cat([edges, edges.nextafter(torch.zeros(())), edges.nextafter(torch.ones(()))]).clamp(0, 1 - 2.0**-53)
    assert bool((tree.get(tree.find(u)) > 0).all())


def test_sums_depend_on_the_weights_only():
    """A tree rebuilt at once is bit-equal to one changed many times, so a resumed run draws the same."""
    generator = torch.Generator().manual_seed(0)
    size = 3000
    changed, weight = SumTree(size), torch.zeros(size, dtype=torch.float64)
    for _ in range(300):
        index = torch.randint(size, (17,), generator=generator).unique()
        weight[index] = torch.rand(len(index), generator=generator, dtype=torch.float64)
        changed.set(index, weight[index])
    rebuilt = SumTree(size)
    rebuilt.set(torch.arange(size), weight)
    assert torch.equal(changed.total, rebuilt.total)
    u = torch.rand(5000, generator=generator, dtype=torch.float64)
    assert torch.equal(changed.find(u), rebuilt.find(u))

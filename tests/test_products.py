"""Where float32 products are torch's own or oneDNN's, they are products in float32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from difftop import products
from difftop.products import exact, wide_products
from tests.agents.test_scaled import scaled
from tests.conftest import STATE, random_batch

LARGE, SMALL = (192, 256), (20, 256)


@pytest.fixture
def setting() -> Iterator[object]:
    found = products._setting()
    if found is None:
        pytest.skip("this torch has no setting for it")
    before = found.fp32_precision
    yield found
    assert found.fp32_precision == before


@pytest.mark.parametrize(("shape", "usable", "inside"), [(LARGE, True, "bf16"), (SMALL, True, None), (LARGE, False, None)])
def test_large_products_are_set_apart_where_that_is_known_to_be_good(
    setting, monkeypatch, shape: tuple[int, int], usable: bool, inside: str | None
) -> None:  # type: ignore[no-untyped-def]
    before = setting.fp32_precision
    monkeypatch.setattr(products, "available", lambda: usable)
    with wide_products(*shape):
        assert setting.fp32_precision == (inside or before)
    assert setting.fp32_precision == before


def test_the_setting_is_as_before_after_an_error(setting, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(products, "available", lambda: True)
    before = setting.fp32_precision
    with pytest.raises(KeyError), wide_products(*LARGE):
        raise KeyError
    assert setting.fp32_precision == before


@pytest.mark.parametrize("shape", [(192, 256, 256), (192, 70, 256), (256, 192, 1), (3, 256, 6)])
def test_they_are_exact_to_float32(shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=g) for size in ((rows, inputs), (outputs, inputs), (outputs,)))
    with wide_products(*LARGE):
        found = [torch.addmm(bias, x, weight.t()), x.t() @ x, torch.bmm(x[None], weight.t()[None])[0]]
    x, weight, bias = x.double(), weight.double(), bias.double()
    for made, truth in zip(found, [bias + x @ weight.t(), x.t() @ x, x @ weight.t()], strict=True):
        assert (made - truth).abs().max() <= 2e-6 * inputs**0.5 * rows**0.5


def test_rounding_to_bfloat16_is_noticed(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    assert exact()
    rounded = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: rounded(a.bfloat16(), b.bfloat16()).float())
    assert not exact()


def test_other_makers_keep_their_products(setting, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(products, "maker", lambda: "GenuineIntel")
    assert not products.available.__wrapped__()
    monkeypatch.setattr(products, "maker", lambda: "AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(products, "exact", lambda: False)
    assert not products.available.__wrapped__()
    monkeypatch.setattr(products, "exact", lambda: True)
    assert products.available.__wrapped__()


@pytest.mark.skipif(not products.available(), reason="not an AMD CPU with AVX-512")
def test_an_update_asks_for_them_and_is_the_same_to_rounding(setting, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    found, inside = [], []
    for worth in (0.0, torch.inf):
        monkeypatch.setattr(products, "_WORTH", worth)
        agent = scaled()
        losses = agent.world.losses
        monkeypatch.setattr(
            agent.world, "losses", lambda *given, losses=losses: (inside.append(setting.fp32_precision), losses(*given))[1]
        )
        found.append([agent.update(random_batch(STATE, 8, 3), 0).metrics["train/model_loss"] for _ in range(3)])
    assert inside[:3] == ["bf16"] * 3 and "bf16" not in inside[3:]
    torch.testing.assert_close(torch.stack(found[0]), torch.stack(found[1]), rtol=1e-4, atol=1e-5)

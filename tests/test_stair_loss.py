"""stair_loss: the exact objective, streamed over the vocabulary."""

from __future__ import annotations

import pytest
import torch
from conftest import Implementation
from on_device import require_kernel
from tolerance import assert_close
from torch.utils.checkpoint import checkpoint

import stair_kernels as sk
from stair_kernels import VocabHead, reference


def make_pair(dtype: torch.dtype, B: int, V: int, tied: bool = False) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Leaves: text hidden, weight, bias; image hidden, weight, bias; and the texts' mask."""
    L, D = 5, 8
    text, image = torch.randn(B, L, D), torch.randn(B, 2 * L, D) * 0.5
    leaves = [text, torch.randn(V, D) * 0.5, torch.randn(V) - 1, image, torch.randn(V, D) * 0.5, torch.randn(V) - 1]
    mask = torch.rand(B, L) > 0.3
    mask[:, 0] = True
    return [leaf.to(dtype) for leaf in leaves], mask


def run(operators: object, leaves: list[torch.Tensor], mask: torch.Tensor, scale: float, **options: object) -> tuple:
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    logit_scale = torch.tensor(scale, requires_grad=True)
    result = operators.stair_loss(
        VocabHead(*leaves[:3], mask),
        VocabHead(*leaves[3:]),
        logit_scale=logit_scale,
        text_flops=0.3,
        image_flops=0.7,
        **options,
    )
    result.loss.backward()
    return result, [leaf.grad for leaf in (*leaves, logit_scale)]


NAMES = ("text.hidden", "text.weight", "text.bias", "image.hidden", "image.weight", "image.bias", "logit_scale")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("B", "V", "chunk", "save"),
    [(6, 300, 128, "none"), (1, 50, 4096, "positions"), (5, 257, 256, "positions"), (4, 100, 33, "none")],
)
def test_loss_and_gradients_match_float64(
    impl: Implementation, B: int, V: int, chunk: int, save: str, normalize: bool, dtype: torch.dtype
) -> None:
    leaves, mask = make_pair(dtype, B, V)
    got, grads = run(impl.operators, leaves, mask, 0.9, normalize=normalize, chunk=chunk, save=save)
    wide = [leaf.double() for leaf in leaves]
    truth, true_grads = run(reference, wide, mask, 0.9, normalize=normalize, compute_dtype=torch.float64)
    eager, eager_grads = run(reference, leaves, mask, 0.9, normalize=normalize)
    for name, part, want, same in zip(got._fields, got, truth, eager):
        assert_close(part.detach(), want.detach(), same.detach(), name)
    for name, grad, want, same in zip(NAMES, grads, true_grads, eager_grads):
        assert_close(grad, want, same, f"gradient of {name}", addend=1.0 if name == "logit_scale" else 0.0)


def test_chunk_size_changes_only_rounding(impl: Implementation) -> None:
    leaves, mask = make_pair(torch.float32, 7, 500)
    results = [run(impl.operators, leaves, mask, 2.0, normalize=True, chunk=chunk) for chunk in (32, 128, 500)]
    for result, grads in results[1:]:
        torch.testing.assert_close(result.loss, results[0][0].loss)
        for a, b in zip(grads, results[0][1]):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_parts_are_differentiable_alone(impl: Implementation) -> None:
    leaves, mask = make_pair(torch.float32, 4, 60)
    for field in ("contrastive", "text_flops", "image_flops"):
        grads = []
        for operators in (impl.operators, reference):
            hidden = leaves[0].clone().requires_grad_()
            image = leaves[3].clone().requires_grad_()
            result = operators.stair_loss(
                VocabHead(hidden, *leaves[1:3], mask), VocabHead(image, *leaves[4:]), logit_scale=1.0
            )
            grads.append(torch.autograd.grad(getattr(result, field), (hidden, image), allow_unused=True))
        for got, want in zip(*grads):
            torch.testing.assert_close(got, torch.zeros_like(got) if want is None else want, rtol=1e-4, atol=1e-5)


def test_one_weight_may_serve_both_towers(impl: Implementation) -> None:
    leaves, mask = make_pair(torch.float32, 4, 60)
    grads = []
    for operators in (impl.operators, reference):
        weight = leaves[1].clone().requires_grad_()
        loss = operators.stair_loss(
            VocabHead(leaves[0], weight, None, mask), VocabHead(leaves[3], weight), logit_scale=1.0
        )
        grads.append(torch.autograd.grad(loss.loss, weight)[0])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_all_zero_output_scores_nothing(impl: Implementation) -> None:
    """A collapsed model ties every score; a tie counts against it."""
    leaves, mask = make_pair(torch.float32, 4, 60)
    dead = torch.full((60,), -1e4)
    result = impl.operators.stair_loss(
        VocabHead(leaves[0], leaves[1], dead, mask),
        VocabHead(leaves[3], leaves[4], dead),
        logit_scale=1.0,
        normalize=True,
    )
    assert result.accuracy == 0
    assert result.text_active == 0
    torch.testing.assert_close(result.contrastive, torch.tensor(4.0).log())


def test_the_means_over_an_empty_batch_are_nan(impl: Implementation) -> None:
    leaves, mask = make_pair(torch.float32, 0, 60)
    for operators in (impl.operators, reference):
        assert run(operators, leaves, mask, 1.0)[0].contrastive.isnan()


def test_same_bits_for_any_number_of_threads(impl: Implementation, threads) -> None:  # type: ignore[no-untyped-def]
    leaves, mask = make_pair(torch.float32, 6, 700)
    results = []
    for n in (1, 2, 5):
        threads(n)
        results.append(run(impl.operators, leaves, mask, 2.0, normalize=True, chunk=256))
    for result, grads in results[1:]:
        assert torch.equal(result.loss, results[0][0].loss)
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0][1]))


def test_opcheck_compile_and_autocast(device: str) -> None:
    require_kernel("stair_loss", device)
    leaves, mask = make_pair(torch.float32, 4, 60)
    leaves, mask = [leaf.to(device).requires_grad_() for leaf in leaves], mask.to(device)
    scale = torch.tensor(1.5, device=device, requires_grad=True)
    args = (*leaves[:3], mask, *leaves[3:], None, scale, True, 32, True, "")
    torch.library.opcheck(torch.ops.stair.stair_loss.default, args)

    def step(*leaves: torch.Tensor) -> torch.Tensor:
        return sk.stair_loss(VocabHead(*leaves[:3], mask), VocabHead(*leaves[3:]), logit_scale=1.5, text_flops=0.1).loss

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(step(*leaves), leaves)):
        assert torch.equal(a, b)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        low = step(*leaves)
    # autocast casts what is multiplied; the bias is added in float32
    assert torch.equal(low, step(*(leaf if leaf.dim() == 1 else leaf.bfloat16() for leaf in leaves)))


@pytest.mark.parametrize("save", ["none", "positions"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(
    impl: Implementation, use_reentrant: bool, save: str
) -> None:
    """Around the towers and the loss: both are computed again in the backward."""
    leaves, mask = make_pair(torch.float32, 6, 300)
    calls = 0

    def step(text: torch.Tensor, image: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        towers = VocabHead(torch.tanh(text), *rest[:2], mask), VocabHead(torch.tanh(image), *rest[2:])
        options = {"logit_scale": 2.0, "text_flops": 0.3, "image_flops": 0.7, "normalize": True, "save": save}
        return impl.operators.stair_loss(*towers, **options).loss

    order = (0, 3, 1, 2, 4, 5)
    inputs = [leaves[i].clone().requires_grad_() for i in order]
    want = torch.autograd.grad(step(*inputs), inputs)
    loss = checkpoint(step, *inputs, use_reentrant=use_reentrant)
    loss.backward()  # torch.autograd.grad is not for reentrant checkpoints
    assert calls == 3
    assert all(torch.equal(leaf.grad, grad) for leaf, grad in zip(inputs, want))


def test_accumulated_micro_batches_add_up(impl: Implementation) -> None:
    """A backward for each micro-batch leaves the gradients of one backward of the sum of their losses."""
    batches = [make_pair(torch.float32, B, 300) for B in (6, 3, 1)]
    parameters = [batches[0][0][i] for i in (1, 2, 4, 5)]

    def losses(shared: list[torch.Tensor]) -> list[torch.Tensor]:
        towers = [
            (VocabHead(leaves[0], *shared[:2], mask), VocabHead(leaves[3], *shared[2:])) for leaves, mask in batches
        ]
        return [impl.operators.stair_loss(*pair, logit_scale=2.0, text_flops=0.3).loss / 3 for pair in towers]

    steps, whole = ([leaf.clone().requires_grad_() for leaf in parameters] for _ in range(2))
    for loss in losses(steps):
        loss.backward()
    torch.stack(losses(whole)).sum().backward()
    for step, together in zip(steps, whole):
        torch.testing.assert_close(step.grad, together.grad)


def test_bad_input_names_the_argument() -> None:
    leaves, mask = make_pair(torch.float32, 4, 60)
    text, image = VocabHead(*leaves[:3], mask), VocabHead(*leaves[3:])
    for change, message in [
        ({"image": VocabHead(leaves[3][:3], *leaves[4:])}, r"image: expected 4 rows like text, got 3"),
        (
            {"image": VocabHead(leaves[3], leaves[4][:50], leaves[5][:50])},
            r"image: expected a vocabulary of 60 like text, got 50",
        ),
        ({"logit_scale": torch.ones(2)}, r"logit_scale: expected a float or a scalar tensor, got shape \[2\]"),
        ({"logit_scale": torch.ones((), device="meta")}, r"logit_scale: expected device cpu like text, got meta"),
        ({"image": VocabHead(leaves[3], sk.pack_vocab(leaves[4]))}, r"image: expected a weight tensor"),
        ({"save": "rows"}, r"save: expected none or positions, got 'rows'"),
        ({"chunk": 0}, r"chunk: expected an integer >= 1, got 0"),
        ({"text": VocabHead(leaves[0], leaves[1], leaves[2], mask[:2])}, r"mask: expected \[4, 5\] bool"),
    ]:
        with pytest.raises(ValueError, match=message):
            sk.stair_loss(**{"text": text, "image": image, "logit_scale": 1.0, **change})

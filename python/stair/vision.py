"""EfficientNet-lite0, frozen: pictures to a map of 432 features at stride 16."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 16
FEATURE_WIDTH = 432  # 112 channels at stride 16 and 320 at stride 32, enlarged to the same map
STAGES = (  # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
MIDDLE = 10  # the last block at stride 16


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's 'same' padding, which these weights were trained with: the odd pixel goes right and below."""
    padding: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


class FrozenConv(nn.Module):
    """A convolution with its batch norm folded in; weight and bias are kept in bfloat16, no gradient reaches them."""

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride, self.groups = kernel, stride, groups
        shape = (outputs, inputs // groups, kernel, kernel)
        drawn = torch.randn(shape) / math.sqrt(shape[1] * kernel * kernel)
        self.register_buffer("weight", drawn.to(torch.bfloat16))
        self.register_buffer("bias", torch.zeros(outputs, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        x = pad_same(x, self.kernel, self.stride)
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), stride=self.stride, groups=self.groups)

    @torch.no_grad()
    def fold(self, weight: Tensor, norm: dict[str, Tensor]) -> None:
        """Takes over a convolution's weight and the batch norm behind it (weight, bias, running_mean, running_var)."""
        scale = norm["weight"] / torch.sqrt(norm["running_var"] + 1e-3)
        self.weight.copy_(weight * scale[:, None, None, None])
        self.bias.copy_(norm["bias"] - norm["running_mean"] * scale)


class Block(nn.Module):
    """Inverted residual: 1x1 to a wider map, depthwise, 1x1 back."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = FrozenConv(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = FrozenConv(wide, wide, kernel, stride, groups=wide)
        self.project = FrozenConv(wide, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """pixel_values [B, 3, S, S] to features [B, (S / 16)^2, 432] float32, without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = FrozenConv(3, 32, 3, 2)
        blocks, inputs = [], 32
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for number in range(repeats):
                blocks.append(Block(inputs, outputs, kernel, stride if number == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)

    @property
    def compute_dtype(self) -> torch.dtype:
        """bfloat16 where the hardware multiplies it, float32 elsewhere."""
        fast = self.stem.weight.device.type != "cpu" or has_bfloat16()
        return torch.bfloat16 if fast else torch.float32

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        x = pixel_values.to(self.compute_dtype).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(x))
        middle = x
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == MIDDLE:
                middle = x
        far = F.interpolate(x.float(), size=middle.shape[-2:], mode="bilinear")
        return torch.cat([middle.float(), far], dim=1).flatten(2).transpose(1, 2).contiguous()

    def load_published(self, state: dict[str, Tensor]) -> None:
        """Takes over the published EfficientNet-lite0 weights (the classifier and its 1x1 convolution are left out)."""

        def folded(conv: FrozenConv, name: str, norm: str) -> None:
            parts = ("weight", "bias", "running_mean", "running_var")
            conv.fold(state[f"{name}.weight"], {part: state[f"{norm}.{part}"] for part in parts})

        folded(self.stem, "_conv_stem", "_bn0")
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            name = f"_blocks.{number}"
            if block.expand is not None:
                folded(block.expand, f"{name}._expand_conv", f"{name}._bn0")
            folded(block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1")
            folded(block.project, f"{name}._project_conv", f"{name}._bn2")

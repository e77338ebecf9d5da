"""Networks whose results are many operators at once, each under its own name."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.small import Net, conv
from tests.zoo.statistics import randomise_statistics

IMAGE = (2, 4, 12, 16)


def network(function: Any, *example: Tensor, **parts: Any) -> nn.Module:
    """A convolution with BatchNorm and ReLU, and ``function`` of what comes out of it."""
    torch.manual_seed(0)

    def forward(net: Any, x: Tensor) -> Any:
        return function(net, torch.relu(net.norm(net.conv(x))))

    built = Net(forward, conv=conv(4, 6), norm=nn.BatchNorm2d(6), **parts)
    return randomise_statistics(built, *(example or (torch.randn(8, *IMAGE[1:]),))).eval()


def activations(net: Any, x: Tensor) -> dict[str, Tensor]:
    """Element-wise functions of one operand."""
    y = x - 0.5
    return {
        "relu6": F.relu6(4 * y),
        "silu": F.silu(y),
        "hardswish": F.hardswish(5 * y),
        "hardsigmoid": F.hardsigmoid(5 * y),
        "hardtanh": F.hardtanh(y, -0.25, 0.5),
        "leaky_relu": F.leaky_relu(y, 0.2),
        "elu": F.elu(y, 0.7),
        "prelu": net.slope(y),
        "softplus": F.softplus(y),
        "mish": F.mish(y),
        "selu": F.selu(y),
        "logsigmoid": F.logsigmoid(y),
        "threshold": F.threshold(y, 0.1, 0.7),
        "gelu": F.gelu(y),
        "gelu_tanh": F.gelu(y, approximate="tanh"),
        "sigmoid": torch.sigmoid(y),
        "tanh": torch.tanh(y),
        "clamp": y.clamp(-0.1, 0.3),
        "clamp_min": y.clamp(min=0.1),
        "clamp_max": y.clamp(max=0.1),
    }


def arithmetic(net: Any, x: Tensor) -> dict[str, Tensor]:
    """Sums, products, powers, roots, with tensors and with numbers."""
    y = x[:, :1] + 0.5
    return {
        "alpha": torch.add(x, y, alpha=2),
        "minus": torch.sub(x, y, alpha=0.5),
        "reversed": 1 - x,
        "scaled": x * 3 / 7,
        "quotient": x / (y + 1),
        "floored": torch.div(x, 0.3, rounding_mode="floor"),
        "largest": torch.maximum(x, y),
        "smallest": torch.minimum(x, y),
        "square": y**2,
        "cube": y**3,
        "root": y**0.5,
        "power": y ** (x + 0.5),
        "power_of_number": 0.5**x,
        "power_of_2": torch.exp2(x) + torch.log2(y),
        "addcdiv": torch.addcdiv(x, y, y + 1, value=0.5),
        "between": torch.lerp(x, y, 0.3) + torch.lerp(x, y, x),
        "clamped": torch.clamp(x, min=y, max=y + 0.1),
        "atan": torch.atan(x),
        "inverse": y.reciprocal(),
        "inverse_root": y.rsqrt(),
        "exp": torch.exp(-y),
        "log": torch.log(y),
        "erf": torch.erf(y),
        "abs": (y - 1).abs(),
        "neg": -y,
        "sin": y.sin(),
        "cos": y.cos(),
        "addcmul": torch.addcmul(x, y, y, value=0.5),
        "chosen": torch.where(x > 0.2, x, 0.1 * x),
        "chosen_numbers": torch.where(x <= y, 1.0, -1.0) + torch.where(x != 0, x, 2.0),
        "masked": x.masked_fill((x < 0.2) | (x >= 1), 3.0),
        "unlike": x.masked_fill(torch.logical_not(x == 0) & torch.logical_and(x > 1, x < 2), 3.0),
        "normalised": F.normalize(x, dim=1),
        "absolute": torch.linalg.vector_norm(x - 1, 1, (2, 3)),
        "counted": x + torch.arange(x.shape[1]).view(1, -1, 1, 1),
    }


def movement(net: Any, x: Tensor) -> dict[str, Any]:
    """Shapes, slices and joins."""
    first, second = x.split([2, 4], 1)
    n, c, h, w = x.shape
    return {
        "flat": x.flatten(2),
        "flat_batch": x.flatten(0, 1),
        "viewed": x.view(n, 2, 3, h, w).transpose(1, 2).reshape(n, c, h, w),
        "rows": x.reshape(n, c * h, w),
        "permuted": x.permute(0, 2, 3, 1),
        "swapped": x.transpose(1, -1),
        "sliced": x[:, 1:5:2, 1:-1],
        "selected": x[:, -2],
        "cat": torch.cat([second, first, second], 1),
        "stack": torch.stack([first, 2 * first], 1),
        "chunks": list(x.chunk(3, 1)),
        "unbound": x.unbind(1)[3],
        "expanded": x.mean((2, 3), keepdim=True).expand(-1, -1, h, w) + 0,
        "expanded_as": x[:1, :1, :1, :1].expand_as(x) + 0,
        "repeated": x.repeat(1, 2, 1, 3),
        "squeezed": x[:, :1].squeeze(1).unsqueeze(-1),
        "shuffled": F.pixel_shuffle(x[:, :4], 2),
        "shuffled_channels": F.channel_shuffle(x, 3),
        "flipped": x.flip(1, 3),
        "zeros": F.pad(x, (1, 2, 0, 3)),
        "value": F.pad(x, (1, 2), value=-1.5),
        "cropped": F.pad(x, (-1, -2, 1, 0)),
        "reflected": F.pad(x, (1, 2, 3, 0), mode="reflect"),
        "replicated": F.pad(x, (1, 2, 3, 0), mode="replicate"),
        "wrapped": F.pad(x, (1, 2, 3, 0), mode="circular"),
        "double": x.double() / 3,
        "whole": (10 * x).int(),
    }


def pooling(net: Any, x: Tensor) -> dict[str, Tensor]:
    """Pooling whose windows do not depend on the image's size."""
    return {
        "max": F.max_pool2d(x, 3, 2, 1),
        "max_dilated": F.max_pool2d(x, 2, 1, 0, dilation=2),
        "max_ceil": F.max_pool2d(x, 3, 2, ceil_mode=True),
        "max_ceil_padded": F.max_pool2d(x, (3, 2), (2, 3), 1, ceil_mode=True),
        "mean": F.avg_pool2d(x, 3, 2, 1),
        "mean_uncounted": F.avg_pool2d(x, (3, 2), 2, 1, count_include_pad=False),
        "mean_divisor": F.avg_pool2d(x, 2, divisor_override=3),
        "mean_ceil_uncounted": F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        "whole_max": F.adaptive_max_pool2d(x, 1),
        "whole_mean": F.adaptive_avg_pool2d(x, 1),
        "whole_mean_flat": x.mean((2, 3)),
        "nearest": F.interpolate(x, scale_factor=2.0, mode="nearest"),
    }


def fixed_pooling(net: Any, x: Tensor) -> dict[str, Tensor]:
    """Pooling and resizing that need to know the image's size."""
    return {
        "mean_ceil": F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        "mean_ceil_divisor": F.avg_pool2d(x, 3, 2, ceil_mode=True, divisor_override=5),
        "even": F.adaptive_avg_pool2d(x, (3, 4)),
        "uneven": F.adaptive_avg_pool2d(x, (5, 7)),
        "one_side": F.adaptive_avg_pool2d(x, (None, 3)),
        "even_max": F.adaptive_max_pool2d(x, (3, 4)),
        "uneven_max": F.adaptive_max_pool2d(x, (5, 7)),
        "bilinear": F.interpolate(x, (9, 23), mode="bilinear"),
        "corners": F.interpolate(x, (9, 23), mode="bilinear", align_corners=True),
        "bicubic": F.interpolate(x, (9, 23), mode="bicubic"),
        "smooth": F.interpolate(x, (5, 7), mode="bilinear", antialias=True),
    }


def reduction(net: Any, x: Tensor) -> dict[str, Any]:
    """Sums, extremes, ranks, statistics, matrix products."""
    flat = x.flatten(1)[:, :40]
    values, indices = torch.topk(flat, 3)
    return {
        "sum": x.sum((1, 3)),
        "mean_kept": x.mean(1, keepdim=True),
        "mean_all": x.mean(),
        "log_sum_exp": x.logsumexp((2, 3)),
        "multiplied": (x[:, :3] + 0.5).prod(1),
        "einsum": torch.einsum("nchw,ndhw->ncd", x, x[:, :2]),
        "cosine": F.cosine_similarity(x, x[:, :1], dim=2),
        "added_product": torch.baddbmm(
            x[:, :, :1, 0], x.flatten(2), x.flatten(2).transpose(1, 2), beta=0.5, alpha=2
        ),
        "amax": x.amax((2, 3)),
        "amin": x.amin(1),
        "max_value": x.max(1)[0],
        "variance": x.var(1),
        "deviation": x.std(1, correction=0, keepdim=True),
        "softmax": torch.softmax(x, 1),
        "log_softmax": torch.log_softmax(flat, -1),
        "argmax": flat.argmax(1),
        "top": values,
        "where": indices,
        "product": torch.matmul(x, x.transpose(2, 3)),
        "batched": torch.bmm(x[:, 0], x[:, 1].transpose(1, 2)),
        "projected": net.projection(x.permute(0, 2, 3, 1)),
    }


def normalisation(net: Any, x: Tensor) -> dict[str, Tensor]:
    """Statistics of the input itself, of which no channel is constant."""
    x = net.mix(x)
    return {
        "batch": net.batch(x),
        "group": net.group(x),
        "instance": net.instance(x),
        "layer": net.layer(x.permute(0, 2, 3, 1)),
    }


def convolutions(net: Any, x: Tensor) -> dict[str, Tensor]:
    """Other than the two-dimensional one."""
    return {
        "same": net.same(x),
        "one": net.one(x.mean(2)),
        "three": net.three(torch.stack([x, -x], 2)),
        "transposed": net.transposed(x),
        "transposed_grouped": net.grouped(x),
    }


NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "activations": (activations, {"slope": nn.PReLU(6)}),
    "arithmetic": (arithmetic, {}),
    "movement": (movement, {}),
    "pooling": (pooling, {}),
    "reduction": (reduction, {"projection": nn.Linear(6, 5)}),
    "normalisation": (
        normalisation,
        {
            "mix": conv(6, 6),
            "batch": nn.BatchNorm2d(6, track_running_stats=False),
            "group": nn.GroupNorm(3, 6),
            "instance": nn.InstanceNorm2d(6, affine=True),
            "layer": nn.LayerNorm(6),
        },
    ),
    "convolutions": (
        convolutions,
        {
            "same": nn.Conv2d(6, 3, 4, padding="same"),
            "one": nn.Conv1d(6, 4, 3, padding="same"),
            "three": nn.Conv3d(6, 4, (2, 3, 3), padding=(0, 1, 1)),
            "transposed": nn.ConvTranspose2d(6, 3, 3, 2, 1, output_padding=1),
            "grouped": nn.ConvTranspose2d(6, 4, 2, groups=2),
        },
    ),
}
"""Name -> (results of a feature map, parts); at any image size."""

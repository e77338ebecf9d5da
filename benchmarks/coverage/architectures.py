"""The architectures that are measured: names as the bench's ``--model`` takes them, and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastres.errors import OptionError
from fastres.workload import model_source
from fastres.workload.model_source import Source


@dataclass(frozen=True)
class Architecture:
    """A network with random weights.

    Attributes:
        source: where it is defined, and its name there.
        size: pixels of a side of its images.
    """

    source: Source
    size: int = 224

    @property
    def name(self) -> str:
        """Its name in tables and for ``--only``."""
        return self.source.name.rpartition(":")[2]

    @property
    def origin(self) -> str:
        """The package that defines it; "benchmarks" for those written here."""
        return "benchmarks" if self.source.kind == "function" else self.source.kind


_TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "densenet121",
    "densenet161",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "regnet_y_400mf",
    "regnet_y_1_6gf",
    "regnet_x_800mf",
    "convnext_tiny",
    "inception_v3",
    "googlenet",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "mnasnet1_0",
    "vgg16_bn",
)
_TIMM = (
    "seresnet50",
    "legacy_seresnet50",
    "seresnext50_32x4d",
    "ecaresnetlight",
    "ecaresnet50d",
    "resnet50d",
    "resnetrs50",
    "resnetaa50",
    "resnetblur50",
    "resnest14d",
    "resnest26d",
    "res2net50_26w_4s",
    "skresnet18",
    "resnetv2_50",
    "resnetv2_50x1_bit",
    "dpn68",
    "hrnet_w18_small",
    "dla34",
    "cspresnet50",
    "legacy_xception",
    "rexnet_100",
    "ghostnet_100",
    "repvgg_a0",
    "ese_vovnet19b_dw",
    "gcresnet33ts",
    "bat_resnext26ts",
    "lambda_resnet26t",
    "botnet26t_256",
)
_WRITTEN_HERE = ("UNet", "FPN", "FaceResNet", "ibn_resnet50", "PreActivationResNet")
_SIZES = {
    "inception_v3": 299,
    "legacy_xception": 299,
    "gcresnet33ts": 256,
    "bat_resnext26ts": 256,
    "lambda_resnet26t": 256,
    "botnet26t_256": 256,
    "FaceResNet": 112,
}
_SOURCES = (
    *(f"torchvision:{name}" for name in _TORCHVISION),
    *(f"timm:{name}" for name in _TIMM),
    *(f"benchmarks.coverage.networks:{name}" for name in _WRITTEN_HERE),
)
ARCHITECTURES = tuple(
    Architecture(model_source.parse(text), _SIZES.get(text.partition(":")[2], 224))
    for text in _SOURCES
)
"""All of them, in the order of the table."""


def chosen(names: Sequence[str]) -> list[Architecture]:
    """Those of these names, in the order of the table; all for no names.

    Raises:
        OptionError: there is none of a name.
    """
    known = [architecture.name for architecture in ARCHITECTURES]
    for name in names:
        if name not in known:
            raise OptionError(
                f"--only {name}: there is no such architecture; expected of {', '.join(known)}"
            )
    return [each for each in ARCHITECTURES if not names or each.name in names]

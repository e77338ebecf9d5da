"""Our translation to ONNX beside torch's own exporter, on the same optimised models.

    python -m benchmarks.onnx_exporters                # print both
    python -m benchmarks.onnx_exporters --json PATH    # and write the record
    python -m benchmarks.onnx_exporters --table        # print the record, and run nothing
    python -m benchmarks.onnx_exporters --tests        # and run the tests of operators by torch's

Torch's gets what ``fastres.export.to_standard`` gives, and a table for the operators that
TensorRT's list lacks. Either file is then held to everything that ``to_onnx`` holds its own to.
``--tests`` are those of every translated operator and of open image sizes, with torch's exporter in
the place of ours. ``docs/decisions/own-onnx-rules.md`` says what follows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

import fastres
from fastres import models
from fastres.bench import record, revision
from fastres.capture.contract import TensorInput
from fastres.capture.export_program import with_batch_of_two
from fastres.errors import FastresError, ModelError
from fastres.export import model_file, tensorrt_operators, to_standard
from fastres.export.check import check
from fastres.export.check.reference import Reference
from fastres.export.conversion import OPSET
from fastres.export.graph import Converted, convert
from fastres.export.sizes import Sizes, sizes_of
from fastres.ir import ops
from fastres.optimized import OptimizedModule
from fastres.system import target
from fastres.transforms import Transforms
from fastres.workload import inputs

RECORD = Path(__file__).parent / "results" / "onnx_exporters.json"
SIZE = 64
OPSETS = (13, 18)
TESTS = ("tests/export/test_onnx_operators.py", "tests/export/test_onnx_sizes.py")
CHOSEN = "results_are_the_models or fixed_image_size or square_example or two_batches"


def _hardswish(x: Any) -> Any:
    """``x * HardSigmoid(x)``, as in ``fastres.export.rules.activations``."""
    from onnxscript import opset18

    return opset18.Mul(x, opset18.HardSigmoid(x, alpha=1.0 / 6.0, beta=0.5))


def _mish(x: Any) -> Any:
    """``x * tanh(log(1 + exp(x)))``."""
    from onnxscript import opset18

    return opset18.Mul(x, opset18.Tanh(opset18.Softplus(x)))


def _one_like(x: Any) -> Any:
    from onnxscript import opset18

    one: Any = 1.0
    return opset18.CastLike(one, x)


def _reciprocal(x: Any) -> Any:
    """``1 / x``."""
    from onnxscript import opset18

    return opset18.Div(_one_like(x), x)


def _rsqrt(x: Any) -> Any:
    """``1 / sqrt(x)``."""
    from onnxscript import opset18

    return opset18.Div(_one_like(x), opset18.Sqrt(x))


TABLE: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.hardswish.default: _hardswish,
    torch.ops.aten.mish.default: _mish,
    torch.ops.aten.reciprocal.default: _reciprocal,
    torch.ops.aten.rsqrt.default: _rsqrt,
}
"""What torch's exporter would write as an operator that is not on TensorRT's list."""


def by_torch(
    fast: OptimizedModule,
    example: Sequence[Any],
    sizes: Sizes,
    opset: int,
    io_dtype: torch.dtype | None,
    seconds: dict[str, float] | None = None,
) -> Converted:
    """What ``fastres.export.graph.convert`` does, by ``torch.onnx.export``.

    ``io_dtype`` is not looked at: inputs and results stay as the program has them.

    Args:
        fast, example, sizes, opset, io_dtype: as there.
        seconds: what exporting the program takes, without making it, is put there.

    Raises:
        ModelError: torch's exporter refuses the model.
    """
    contract = fast.internals.contract.inputs
    names = [wanted.name for wanted in contract if isinstance(wanted, TensorInput)]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = _fixed(fast, to_standard(fast), sizes)
            began = time.perf_counter()
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=names,
                custom_translation_table=TABLE,
                verbose=False,
            )
    except Exception as error:  # torch's exporter raises what its parts raise
        raise ModelError(f"torch.onnx.export: {str(error).strip().splitlines()[0]}") from error
    if seconds is not None:
        seconds["export"] = time.perf_counter() - began
    assert exported is not None
    proto = exported.model_proto
    places = [i for i, wanted in enumerate(contract) if isinstance(wanted, TensorInput)]
    return Converted(
        proto,
        list(zip(places, (info.name for info in proto.graph.input), strict=False)),
        [(index, info.name) for index, info in enumerate(proto.graph.output)],
        _resized(fast, proto),
        [],
    )


def _resized(fast: OptimizedModule, proto: ModelProto) -> list[tuple[fx.Node, str]]:
    """Where the file has resized bytes, behind which answers are compared on the same ones."""
    nodes = fast.graph_module.graph.find_nodes(op="call_function", target=ops.resize_crop)
    cast = [node.input[0] for node in proto.graph.node if node.op_type == "Cast"]
    return list(zip(nodes, cast, strict=False))  # bytes until they are cast to be normalised


def _fixed(fast: OptimizedModule, program: ExportedProgram, sizes: Sizes) -> ExportedProgram:
    """The program with no sizes open but those of ``sizes``."""
    args, kwargs = with_batch_of_two(*fast.example)
    if kwargs or set(sizes.open) == _symbols(fast):
        return program
    shapes = []
    for wanted in fast.internals.contract.inputs:
        shape = sizes.shape(wanted) if isinstance(wanted, TensorInput) else []
        shapes.append({a: Dim.AUTO for a, size in enumerate(shape) if not isinstance(size, int)})
    return torch.export.export(program.module(), args, dynamic_shapes=tuple(shapes), strict=False)


def _symbols(fast: OptimizedModule) -> set[str]:
    taken = (w for w in fast.internals.contract.inputs if isinstance(w, TensorInput))
    return {s for w in taken for size in w.sizes for s in getattr(size, "symbols", ())}


EXPORTERS = ("fastres", "torch")


def _resnet50() -> nn.Module:
    return models.build("resnet50")


def _timm() -> nn.Module:
    import timm

    return timm.create_model("resnet10t")


def _resnet18() -> nn.Module:
    return models.build("resnet18")


def _hard_swish() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "resnet50": (_resnet50, {}),
    "resnet18 fp16": (_resnet18, {"precision": "fp16"}),
    "timm resnet10t": (_timm, {}),
    "resnet18, preprocessing": (
        _resnet18,
        {"input_format": "uint8_nhwc", "resize": True, "transforms": Transforms(48, 40)},
    ),
    "hard-swish": (_hard_swish, {}),
}
"""Model and options of ``optimize``; the fourth takes photographs of any size."""


def optimised(name: str) -> OptimizedModule:
    """A network of the table, with statistics that its own images have."""
    build, options = NETWORKS[name]
    torch.manual_seed(0)
    model = build().eval()
    images = inputs.synthetic_images(16, 3, SIZE, seed=0)
    inputs.calibrate_random_weights(model, images, seed=0)
    example: Tensor = images[:1]
    if "input_format" in options:
        example = torch.zeros(1, 224, 224, 3, dtype=torch.uint8, device="cpu")
    return fastres.optimize(model, example, engine="eager", **options)


def exported(fast: OptimizedModule, by: str, opset: int) -> dict[str, Any]:
    """A row of the record: the file that an exporter makes, and whether it passes the checks."""
    example = list(fast.internals.example)
    dynamic = fast.preprocessing is not None and fast.preprocessing.resize
    sizes = sizes_of(fast.internals.contract, example, dynamic)
    row: dict[str, Any] = {"by": by, "asked": opset}
    began = time.perf_counter()
    try:
        if by == "torch":
            alone: dict[str, float] = {}
            converted = by_torch(fast, example, sizes, opset, None, alone)
            row["seconds_without_standard"] = alone["export"]
        else:
            converted = convert(fast, example, sizes, opset, None)
    except FastresError as error:
        return {**row, "failed": _sentence(error)}
    row["seconds"] = time.perf_counter() - began
    row |= described(converted.proto, named(fast))
    if by == "torch":
        _find_sizes(fast, example, sizes, opset)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        try:
            model_file.write(converted.proto, file, external=False)
            check.check(file, converted, Reference(fast, None), sizes, example)
        except (FastresError, ValueError) as error:
            return {**row, "failed": _sentence(error)}
    return {**row, "failed": None}


def _find_sizes(fast: OptimizedModule, example: Sequence[Any], sizes: Sizes, opset: int) -> None:
    """Put into ``sizes`` which images may be tried: our translation does, also where it refuses."""
    with contextlib.suppress(ModelError):
        convert(fast, example, sizes, opset, None)


def _sentence(error: Exception | str) -> str:
    plain = re.sub(r"\x1b\[\d+m", "", str(error))  # torch's is coloured
    return re.sub(r"/\S*/", "", plain.strip().splitlines()[0])[:300]


def named(fast: OptimizedModule) -> set[str]:
    """The user's modules behind the nodes of the fused graph."""
    nodes = fast.graph_module.graph.nodes
    return {str(node.meta["module"]) for node in nodes if node.meta.get("module")}


def described(proto: ModelProto, modules: Iterable[str]) -> dict[str, Any]:
    """What a file holds."""
    operators = Counter(node.op_type for node in proto.graph.node)
    names = {node.name.partition("/")[0] for node in proto.graph.node}
    return {
        "opset": next(each.version for each in proto.opset_import if each.domain == ""),
        "nodes": sum(operators.values()),
        "operators": dict(operators.most_common()),
        "initialisers": len(proto.graph.initializer),
        "initialiser_bytes": model_file.weight_bytes(proto),
        "modules": len(set(modules)),
        "modules_named": len(set(modules) & names),
        "open_sizes": sorted({d.dim_param for d in _dimensions(proto) if d.dim_param}),
        "not_in_tensorrt": tensorrt_operators.outside(operators),
    }


def _dimensions(proto: ModelProto) -> Iterable[Any]:
    for info in proto.graph.input:
        yield from info.type.tensor_type.shape.dim


def pytest_configure() -> None:
    """As a plugin of pytest: ``to_onnx`` translates by torch's exporter."""
    from fastres.export import write

    def instead(*arguments: Any) -> Converted:
        _find_sizes(*arguments[:4])
        return by_torch(*arguments)

    vars(write)["convert"] = instead


def tests_by_torch() -> list[dict[str, Any]]:
    """Our exporter's tests with torch's exporter: each test's name, and why it fails or None."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--tb=no", "-rpf", "-k", CHOSEN]
    done = subprocess.run(
        [*command, "-p", "benchmarks.onnx_exporters", *TESTS],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "1000"},
    )
    lines = re.findall(r"^(PASSED|FAILED) \S*?::(.*?)(?: - (.*))?$", done.stdout, re.MULTILINE)
    return [
        {"test": name, "failed": _sentence(reason or "it failed") if word == "FAILED" else None}
        for word, name, reason in lines
    ]


def table(path: Path = RECORD) -> str:
    """The record as ``docs/decisions/own-onnx-rules.md`` shows it, at the default opset."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    lines = [
        "| network | by | opset for 13, 18 | nodes | modules named | weights | seconds "
        "| not on TensorRT's list | answers |",
        "|---|---|---|---:|---:|---:|---:|---|---|",
    ]
    for row in rows:
        if row["asked"] != OPSET:
            continue
        same = [r for r in rows if (r["network"], r["by"]) == (row["network"], row["by"])]
        opsets = ", ".join(str(each.get("opset") or "refused") for each in same)
        lines.append(
            f"| {row['network']} | {row['by']} | {opsets} "
            f"| {row['nodes']} | {row['modules_named']} of {row['modules']} "
            f"| {row['initialiser_bytes'] / 1e3:,.0f} kB | {row['seconds']:.2f} "
            f"| {', '.join(row['not_in_tensorrt']) or 'none'} "
            f"| {'refused' if row['failed'] else 'as the model'} |"
        )
    return "\n".join(lines)


def passed(path: Path = RECORD) -> tuple[int, int]:
    """Of our exporter's tests with torch's exporter: how many pass, and how many there are."""
    tests = json.loads(path.read_text(encoding="utf-8"))["tests"]
    return sum(test["failed"] is None for test in tests), len(tests)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each file, and write the record where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx_exporters")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--opset", nargs="+", type=int, default=OPSETS)
    parser.add_argument("--tests", action="store_true", help="also the tests, by torch's exporter")
    parser.add_argument("--table", action="store_true", help="print the record and run nothing")
    parser.add_argument("--json", type=Path, help="write the record")
    given = parser.parse_args(argv)
    if given.table:
        print(table())
        return 0
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.CRITICAL)  # conversions that fail are told
    rows = []
    for name in given.network:
        fast = optimised(name)
        for opset in given.opset:
            for by in EXPORTERS:
                row = {"network": name, **exported(fast, by, opset)}
                rows.append(row)
                print(
                    f"{name:24} {by:8} opset {opset} -> {row.get('opset')}: {row.get('nodes')} "
                    f"nodes, {row.get('modules_named')} of {row.get('modules')} modules named, "
                    f"{row.get('seconds', 0):.2f} s; {row['failed'] or 'as the model'}"
                )
    tests = tests_by_torch() if given.tests else []
    for test in tests:
        print(f"{test['test']} by torch's exporter: {test['failed'] or 'passed'}")
    if given.json is not None:
        tree = {
            "schema": "fastres.onnx_exporters",
            "version": 1,
            "revision": revision.of_fastres(),
            "environment": target.environment(),
            "size": SIZE,
            "rows": rows,
            "tests": tests,
        }
        record.write_tree(tree, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

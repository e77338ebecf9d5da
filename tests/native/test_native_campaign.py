"""Hypothesis against the native engine: random convolutions, random subgraphs, random networks."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings

from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.spec import ConvSpec
from fastres.runtime.native import schedule
from tests.networks.test_properties import build
from tests.support.native.by_hand import SETS, check, inputs_of, subgraph
from tests.support.native.emulator import loaded
from tests.support.native.examined import Examined
from tests.support.native.random_graphs import RandomGraph, graphs, kept_size_specs, specs
from tests.support.optimizing import optimize
from tests.support.oracle import PRECISIONS, assert_as_accurate, float64_error
from tests.zoo.generated import Network, networks

# torch says so once in a process, of the model itself.
pytestmark = [
    pytest.mark.campaign,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]

sets_here = st.deferred(
    lambda: st.sampled_from([(p, isa) for p, isa in SETS if isa in loaded().isas])
)


@given(
    spec=st.one_of(specs(), kept_size_specs()),
    which=sets_here,
    threads=st.integers(1, 3),
    before=st.sampled_from(list(ACTIVATIONS)),
    after=st.sampled_from(list(ACTIVATIONS)),
    residual=st.booleans(),
    bias=st.booleans(),
    winograd=st.booleans(),
)
@settings(max_examples=150)
def test_any_convolution(
    spec: ConvSpec,
    which: tuple[str, str],
    threads: int,
    before: str,
    after: str,
    residual: bool,
    bias: bool,
    winograd: bool,
) -> None:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "winograd_pays", lambda spec, itemsize: winograd)
        check(spec, *which, threads, residual, before=before, after=after, bias=bias)


WELL_CONDITIONED = 1e-5
"""Relative error in float32 from which on a random network has lost itself in rounding."""

FACTOR = 5.0
"""Errors of several layers on a handful of numbers differ that much by chance."""


@given(made=graphs(), which=sets_here, threads=st.integers(1, 3))
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
def test_any_subgraph(made: RandomGraph, which: tuple[str, str], threads: int) -> None:
    precision, isa = which
    dtype = PRECISIONS[precision]
    torch.manual_seed(0)
    module, inputs = made.module(), made.tensors()
    note(module.code)
    assume(float64_error(module, module, *inputs).eager < WELL_CONDITIONED)
    given_ = [x.to(dtype) for x in inputs]
    native = subgraph(module.to(dtype), module.graph, given_, isa, threads)
    module = made.module()
    read = inputs_of(native, module.graph, given_)

    def run(*_: Any) -> Any:
        results = native(*read)
        return results if isinstance(results, tuple) else (results,)

    assert_as_accurate(module.float(), run, *inputs, precision=precision, factor=FACTOR)
    if threads > given_[0].shape[0] or threads == 1:
        examined = Examined(native, threads)
        examined.check(read)
        examined.close()


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), sets_here)
def test_any_network(network: Network, which: tuple[str, str]) -> None:
    """Captured and fused as a user's, with operations that the library lacks in between."""
    precision, isa = which
    model, given_ = build(network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRES_NATIVE_ISA", isa)
        fast = optimize(model, given_[:2], engine="native", precision=precision)
        assert fast.engine == "native"
        assert_as_accurate(model, fast, given_, precision=precision, factor=FACTOR)

"""Machine code as text becomes instructions, loops, counts and verdicts; compiling is refused here.

What real kernels compile to is read in ``test_budgets``, in a process that does not interpret.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from fastres.errors import TargetError
from fastres.inspect import main
from fastres.kernels.inspection import amdgcn, sass
from fastres.kernels.inspection.budgets import (
    INTEGER_SHARE,
    NARROW_SHARE,
    STRADDLING_SHARE,
    violations,
)
from fastres.kernels.inspection.finding import Finding, inspect_call, rate, without_rare_loop
from fastres.kernels.inspection.instructions import copies, loops, main_loop, mix
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.tuning import gpus
from fastres.kernels.tuning.occupancy import Occupancy, occupancy

SASS = """
kernel:
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDGSTS.E.BYPASS.128 [R5], desc[UR14][R96.64], P6 ;
        /*0020*/              @!P5 BRA `(.L_x_0) ;
.L_x_1:
        /*0030*/                   LDGSTS.E.BYPASS.128 [R103], desc[UR14][R96.64], P6 ;
        /*0040*/                   LDGSTS.E.LTC128B.64 [R103+0x10], desc[UR14][R96.64] ;
        /*0050*/                   LDSM.16.M88.4 R4, [R8] ;
        /*0060*/                   HMMA.16816.F32 R24, R4, R8, R24 ;
        /*0070*/                   HMMA.16816.F32 R28, R4, R8, R28 ;
        /*0080*/                   IADD3 R14, P5, R14, 0x80, RZ ;
        /*0090*/                   ISETP.NE.U32.AND P5, PT, R88, UR4, PT ;
        /*00a0*/               @P5 BRA `(.L_x_1) ;
.L_x_0:
        /*00b0*/                   FADD R0, R0, R1 ;
        /*00c0*/              @!P0 EXIT ;
        /*00d0*/                   STG.E.U16 desc[UR4][R2.64], R0 ;
        /*00e0*/                   STL [R1], R0 ;
        /*00f0*/                   EXIT ;
.L_x_3:
        /*0100*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P6, [UR16], R6 ;
        /*0110*/                   BRA `(.L_x_0) ;
"""

AMDGCN = """
kernel:
\ts_load_dwordx4 s[4:7], s[0:1], 0x0
.LBB0_2:                                ; =>This Inner Loop Header: Depth=1
\tbuffer_load_dwordx4 v[0:3], v4, s[8:11], 0 offen
\tds_read_b64 v[8:9], v10
\tv_mfma_f32_32x32x8_f16 v[0:15], v[36:37], v[40:41], v[0:15]
\tv_add_u32_e32 v1, v2, v3
\tv_fma_f32 v1, v2, v3, v4
\ts_cbranch_scc1 .LBB0_2
\tglobal_store_dwordx2 v[0:1], v[2:3], off
\tscratch_store_dword off, v1, s0
\ts_endpgm
    .private_segment_fixed_size: 8
    .vgpr_count:     96
    .vgpr_spill_count: 2
"""


def test_sass_becomes_instructions() -> None:
    code = sass.parse(SASS)
    assert [each.opcode for each in code[:3]] == ["LDC", "LDGSTS.E.BYPASS.128", "BRA"]
    assert mix(code).counts == {
        **{"tensor": 2, "integer": 3, "float": 1, "global": 4, "shared": 1, "local": 1},
        "control": 6,
    }
    assert copies(code) == {"async": {8: 1, 16: 2}, "store": {2: 1}}


def test_main_loop_of_sass() -> None:
    body, form = main_loop(sass.parse(SASS))
    assert form == "loop"
    assert mix(body).counts == {
        **{"tensor": 2, "integer": 2, "global": 2, "shared": 1, "control": 1}
    }
    assert mix(body).multiply_adds == 2 * 16 * 8 * 16
    assert mix(body).opcodes == {"HMMA.16816.F32": 2}


def test_return_from_code_behind_the_end_is_no_loop() -> None:
    """The last jump goes back, but over the kernel's end."""
    assert len(loops(sass.parse(SASS))) == 1


def test_jump_back_without_a_condition_closes_a_loop() -> None:
    text = SASS.replace("@P5 BRA `(.L_x_1)", "BRA `(.L_x_1)")
    assert main_loop(sass.parse(text))[1] == "loop"


def test_unrolled_loop_is_from_first_to_last_product() -> None:
    text = SASS.replace("@P5 BRA `(.L_x_1)", "NOP")
    body, form = main_loop(sass.parse(text))
    assert form == "unrolled"
    assert [each.opcode for each in body] == ["HMMA.16816.F32"] * 2


def test_code_without_products_has_no_main_loop() -> None:
    text = "\n".join(line for line in SASS.splitlines() if "HMMA" not in line)
    assert main_loop(sass.parse(text)) == ((), "none")


def test_plain_arithmetic_has_a_main_loop() -> None:
    body, form = main_loop(sass.parse(SASS.replace("HMMA.16816.F32", "FFMA")))
    assert form == "loop"
    assert mix(body).of("float") == 2


@pytest.mark.parametrize(
    ("opcode", "kind", "multiply_adds"),
    [
        ("HMMA.16816.F32.BF16", "tensor", 2048),
        ("HMMA.1688.F32.TF32", "tensor", 1024),
        ("HGMMA.64x128x16.F32", "tensor", 64 * 128 * 16 // 4),
        ("HGMMA.64x64x8.F32.TF32", "tensor", 64 * 64 * 8 // 4),
        ("UTCHMMA", "tensor", 0),
        ("UIADD3.64", "integer", 0),
        ("IMAD.MOV.U32", "integer", 0),
        ("LEA.HI.X.SX32", "integer", 0),
        ("VIADD", "integer", 0),
        ("UMOV", "integer", 0),
        ("ULDC.64", "integer", 0),
        ("PRMT", "integer", 0),
        ("F2FP.F16.F32.PACK_AB", "float", 0),
        ("FSETP.GEU.AND", "float", 0),
        ("HMNMX2", "float", 0),
        ("LDG.E.128", "global", 0),
        ("UTMALDG.2D", "global", 0),
        ("STSM.16.M88.4", "shared", 0),
        ("LDL.64", "local", 0),
        ("WARPGROUP.DEPBAR.LE", "control", 0),
        ("LDGDEPBAR", "control", 0),
        ("BAR.SYNC.DEFER_BLOCKING", "control", 0),
    ],
)
def test_kinds_of_sass(opcode: str, kind: str, multiply_adds: int) -> None:
    (found,) = sass.parse(f"        /*0000*/              @!P1 {opcode} R0, R1 ;")
    assert (found.opcode, found.kind, found.multiply_adds) == (opcode, kind, multiply_adds)


def test_amdgcn_becomes_instructions() -> None:
    code = amdgcn.parse(AMDGCN)
    assert mix(code).counts == {
        **{"tensor": 1, "integer": 2, "float": 1, "global": 2, "shared": 1, "local": 1},
        "control": 2,
    }
    assert copies(code) == {"load": {16: 1}, "store": {8: 1}}
    body, form = main_loop(code)
    assert form == "loop"
    assert mix(body).multiply_adds == 32 * 32 * 8


def test_amdgcn_tells_its_resources() -> None:
    told = amdgcn.resources(AMDGCN)
    assert (told["vgpr_count"], told["vgpr_spill_count"]) == (96, 2)
    assert told["private_segment_fixed_size"] == 8


@pytest.mark.parametrize(
    ("opcode", "multiply_adds"),
    [
        ("v_mfma_f32_32x32x8f16", 8192),  # spelled so before gfx942
        ("v_mfma_f32_16x16x16_bf16", 4096),
        ("v_mfma_f32_32x32x4_xf32", 4096),
        ("v_mfma_f32_32x32x2_f32", 2048),
        ("v_mfma_f32_32x32x4_2b_f16", 8192),
    ],
)
def test_sizes_of_amd_products(opcode: str, multiply_adds: int) -> None:
    (found,) = amdgcn.parse(f"\t{opcode} v[0:15], v[1:2], v[3:4], v[0:15]")
    assert (found.kind, found.multiply_adds) == ("tensor", multiply_adds)


@pytest.mark.parametrize(
    ("opcode", "target", "expected"),
    [
        ("HMMA.16816.F32", "sm_80", 256),
        ("HMMA.1688.F32.TF32", "sm_80", 128),
        ("HMMA.16816.F32", "sm_89", 128),
        ("HGMMA.64x128x16.F32", "sm_90", 512),
        ("v_mfma_f32_32x32x8_f16", "gfx942", 256),
        ("v_mfma_f32_32x32x4_xf32", "gfx942", 128),
        ("v_mfma_f32_32x32x2_f32", "gfx942", 32),
    ],
)
def test_rates_of_matrix_units(opcode: str, target: str, expected: float) -> None:
    assert rate(opcode, gpus.architecture(target)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared", "expected"),
    [
        # NVIDIA's occupancy calculator gives these.
        ("sm_80", 8, 32, 0, Occupancy(8, 64, 1.0, "warps")),
        ("sm_80", 4, 168, 0, Occupancy(3, 12, 12 / 64, "registers")),
        ("sm_80", 8, 255, 0, Occupancy(1, 8, 8 / 64, "registers")),
        ("sm_80", 4, 32, 48 * 1024, Occupancy(3, 12, 12 / 64, "shared")),
        ("sm_86", 4, 32, 48 * 1024, Occupancy(2, 8, 8 / 48, "shared")),
        ("sm_80", 1, 16, 0, Occupancy(32, 32, 0.5, "blocks")),
        ("sm_75", 4, 64, 0, Occupancy(8, 32, 1.0, "warps")),
        ("sm_90", 4, 256, 0, Occupancy(0, 0, 0.0, "registers")),
        ("sm_90", 4, 64, 228 * 1024, Occupancy(0, 0, 0.0, "shared")),
        ("gfx942", 4, 128, 0, Occupancy(4, 16, 0.5, "registers")),
        ("gfx942", 4, 512, 65536, Occupancy(1, 4, 4 / 32, "registers")),
    ],
)
def test_occupancy(
    target: str, warps: int, registers: int, shared: int, expected: Occupancy
) -> None:
    assert occupancy(gpus.architecture(target), warps, registers, shared) == expected


def finding() -> Finding:
    body, form = main_loop(sass.parse(SASS))
    whole = mix(tuple(each for each in sass.parse(SASS) if each.kind != "local"))
    return Finding(
        kernel="kernel",
        architecture="sm_80",
        grid=(1, 1, 1),
        constants={"INPUT_PRECISION": "ieee", "BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "C": 64},
        num_warps=4,
        num_stages=3,
        registers=128,
        spill_bytes=0,
        local_instructions=0,
        shared_bytes=1024,
        occupancy=Occupancy(3, 12, 0.2, "registers"),
        whole=whole,
        loop=mix(body),
        loop_form=form,
        copies={},
        loop_copies={},
        issue_ratio=0.3,
        integer_share=0.1,
    )


def test_good_code_breaks_no_budget() -> None:
    assert violations(finding(), gpus.architecture("sm_80"), "fp16") == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"spill_bytes": 8, "local_instructions": 2}, "8 bytes of local memory per thread, 2 "),
        ({"local_instructions": 1}, "1 instructions on it"),
        ({"shared_bytes": 164 * 1024}, "a block may have 166912"),
        ({"occupancy": Occupancy(0, 0, 0.0, "registers")}, "not one block fits"),
        ({"integer_share": INTEGER_SHARE["fp16"] + 0.1}, "integer instructions per busy cycle"),
        ({"whole": mix(())}, "products by no matrix instruction instead of HMMA"),
    ],
)
def test_each_budget_can_break(changes: dict[str, Any], sentence: str) -> None:
    broken = violations(replace(finding(), **changes), gpus.architecture("sm_80"), "fp16")
    assert len(broken) == 1
    assert sentence in broken[0]


def test_products_must_use_the_architectures_own_units() -> None:
    (sentence,) = violations(finding(), gpus.architecture("sm_90"), "fp16")
    assert "products by HMMA.16816.F32 instead of HGMMA" in sentence


def test_full_float32_has_no_matrix_units_on_nvidia() -> None:
    plain = replace(finding(), whole=mix(()), loop=mix(()), integer_share=None)
    assert violations(plain, gpus.architecture("sm_80"), "fp32") == []
    assert violations(plain, gpus.architecture("gfx942"), "fp32") != []


def test_address_budget_is_for_large_tiles_of_whole_copies() -> None:
    busy = replace(finding(), integer_share=2.0)
    few_rows = replace(busy, constants={**busy.constants, "BLOCK_SIZE_M": 16})
    few_channels = replace(busy, constants={**busy.constants, "C": 3})
    target = gpus.architecture("sm_80")
    assert violations(few_rows, target, "fp16") == violations(few_channels, target, "fp16") == []


def test_narrow_tiles_are_allowed_more() -> None:
    narrow = {**finding().constants, "BLOCK_SIZE_M": 128, "BLOCK_SIZE_N": 32}
    target = gpus.architecture("sm_80")
    busy = replace(finding(), constants=narrow, integer_share=INTEGER_SHARE["fp16"] + 0.1)
    assert violations(busy, target, "fp16") == []
    busier = replace(busy, integer_share=INTEGER_SHARE["fp16"] + NARROW_SHARE + 0.1)
    assert violations(busier, target, "fp16") != []
    tail = replace(busy, constants={**narrow, "CHUNK": 64})
    assert violations(tail, target, "fp16") != []


def test_steps_across_taps_are_allowed_more() -> None:
    taps = {**finding().constants, "R": 3, "S": 3, "C": 72, "BLOCK_SIZE_K": 32}
    target = gpus.architecture("sm_80")
    busy = replace(finding(), constants=taps, integer_share=INTEGER_SHARE["fp16"] + 0.1)
    assert violations(busy, target, "fp16") == []
    busier = replace(busy, integer_share=INTEGER_SHARE["fp16"] + STRADDLING_SHARE + 0.1)
    for changes in ({}, {"C": 64}, {"R": 1, "S": 1}, {"CHUNK": 64}):
        share = busier if not changes else busy
        changed = replace(share, constants={**taps, **changes})
        assert violations(changed, target, "fp16") != []


def test_finding_is_plain_values() -> None:
    plain = finding().as_json()
    assert plain["occupancy"]["limit"] == "registers"
    assert plain["loop"]["opcodes"] == {"HMMA.16816.F32": 2}


@triton.jit  # type: ignore[untyped-decorator]
def nothing_kernel(x_ptr, BLOCK: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    tl.store(x_ptr + tl.arange(0, BLOCK), 0.0)


def test_the_main_loop_is_read_without_the_rare_one() -> None:
    x = torch.empty(16, device="meta")
    plain = KernelCall(nothing_kernel, (1, 1, 1), {"x_ptr": x}, {"BLOCK": 16})
    grouped = replace(plain, constants={"BLOCK": 16, "TOGETHER": 8}, num_warps=8)
    alone = replace(grouped, constants={"BLOCK": 16, "TOGETHER": 1})
    assert without_rare_loop(plain) is plain
    assert without_rare_loop(alone) is alone
    assert without_rare_loop(grouped) == alone


def test_interpreted_kernels_have_no_machine_code() -> None:
    x = torch.empty(16, device="meta")
    call = KernelCall(nothing_kernel, (1, 1, 1), {"x_ptr": x}, {"BLOCK": 16})
    with pytest.raises(TargetError, match=r"TRITON_INTERPRET is set: .* unset it and start again"):
        inspect_call(call, gpus.architecture("sm_80"))


def test_command_says_that_kernels_are_interpreted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--depth", "18"]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


@pytest.mark.campaign
def test_what_is_named_twice_is_compiled_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[tuple[str, str]] = []

    def note(graphs: Any, batch: int, size: int, precision: str, target: Any) -> list[Any]:
        read.append((precision, target.name))
        return []

    monkeypatch.setattr("fastres.kernels.inspection.compiling.require_compiler", lambda: None)
    monkeypatch.setattr("fastres.inspect.command.read", note)
    twice = ("--arch", "sm_80", "SM_80", "sm_90", "--precision", "fp16", "bf16", "fp16")
    assert main(["--model", "cifar_resnet20", *twice]) == 0
    pairs = [(precision, name) for precision in ("fp16", "bf16") for name in ("sm_80", "sm_90")]
    assert read == pairs
    assert capsys.readouterr().out.count("sm_80: 0 distinct launches") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--arch", "sm_70"], "architecture 'sm_70': expected one of sm_75"),
        (["--batch", "0"], "--batch and --size: expected positive numbers"),
    ],
)
def test_command_refuses_what_cannot_be(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err

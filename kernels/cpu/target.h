// Instruction sets by function: the library is for any x86-64, or any AArch64, and each kernel says
// what it needs.

#ifndef FASTRES_TARGET_H
#define FASTRES_TARGET_H

// Elsewhere there are no kernels, and fr_isas() says so. FR_NO_KERNELS makes any machine such one.
#if defined(__GNUC__) && !defined(FR_NO_KERNELS)
#if defined(__x86_64__)
#define FR_X86 1
#define FR_KERNELS 1
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__AARCH64EL__)
#define FR_ARM 1
#define FR_KERNELS 1
#include <arm_neon.h>
#endif
#endif

#ifdef FR_KERNELS
#define FR_INLINE inline __attribute__((always_inline))

// A file's functions between these are for an instruction set, templates included.
#define FR_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FR_BEGIN(features) \
    FR_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FR_END _Pragma("clang attribute pop")
#else
#define FR_BEGIN(features) _Pragma("GCC push_options") FR_PRAGMA(GCC target(features))
#define FR_END _Pragma("GCC pop_options")
#endif
#endif

#ifdef FR_X86
#define FR_TARGET(features) __attribute__((target(features)))
#define FR_WITH_AVX2 FR_TARGET("avx2,fma,f16c")
#define FR_WITH_AVX512 FR_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#define FR_WITH_AVX_VNNI FR_TARGET("avx2,fma,f16c,avxvnni")
#define FR_WITH_AVX512_VNNI FR_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")
#define FR_WITH_AVX512_BF16 FR_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")
// For templates of all dtypes, since a template carries one target. What is not of its dtype's
// instruction set a compiler has no occasion to use.
#define FR_WITH_AVX512_ANY \
    FR_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,fma,f16c")
#define FR_WITH_AMX                                                                            \
    FR_TARGET(                                                                                 \
        "amx-tile,amx-bf16,amx-int8,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni," \
        "fma,f16c")
#define FR_BEGIN_AVX2 FR_BEGIN("avx2,fma,f16c")
#define FR_BEGIN_AVX512 FR_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#define FR_BEGIN_AVX512_BF16 FR_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")
#endif

#ifdef FR_ARM
// NEON is in every AArch64. This is for templates of all dtypes, as FR_WITH_AVX512_ANY; GCC has the
// intrinsics for bfloat16 and int8 from Armv8.2 on.
#define FR_BEGIN_NEON_ANY FR_BEGIN("arch=armv8.2-a+bf16+i8mm")
#endif

#endif

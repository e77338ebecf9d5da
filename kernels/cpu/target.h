// Instruction sets by function: the library is for any x86-64, and each kernel says what it needs.

#ifndef FASTRES_TARGET_H
#define FASTRES_TARGET_H

// Elsewhere there are no kernels, and fr_isas() says so. FR_NO_KERNELS makes any machine such one.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(FR_NO_KERNELS)
#define FR_X86 1
#include <immintrin.h>
#define FR_TARGET(features) __attribute__((target(features)))
#define FR_INLINE inline __attribute__((always_inline))
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
#define FR_BEGIN_AVX2 FR_BEGIN("avx2,fma,f16c")
#define FR_BEGIN_AVX512 FR_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#endif

#endif

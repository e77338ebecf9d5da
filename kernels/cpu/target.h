// Instruction sets by function: the library is built for any x86-64, and each kernel says what it needs.

#ifndef FASTRES_TARGET_H
#define FASTRES_TARGET_H

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FR_X86 1
#include <immintrin.h>
#define FR_TARGET(features) __attribute__((target(features)))
#define FR_INLINE inline __attribute__((always_inline))
#define FR_WITH_AVX2 FR_TARGET("avx2,fma,f16c")
#define FR_WITH_AVX512 FR_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#define FR_WITH_AVX512_BF16 FR_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")
#define FR_WITH_AMX FR_TARGET("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")
#endif

#endif

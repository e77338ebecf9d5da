// How the forms for groups multiply and add uint8 by int8 with AVX2, with and without VNNI.

#ifndef FASTRES_SUMS_AVX2_UINT8_H
#define FASTRES_SUMS_AVX2_UINT8_H

#include "target.h"

#ifdef FR_X86

namespace fastres {

struct Vnni {
    static constexpr int kUnitBytes = 32;

    static FR_WITH_AVX_VNNI FR_INLINE __m256i multiply_add(__m256i sum, __m256i x,
                                                           const char *weights) {
        return _mm256_dpbusd_avx_epi32(sum, x, _mm256_load_si256((const __m256i *)weights));
    }
};

// A vector's units are [even numbers, odd numbers][8][2] int16.
struct Widened {
    static constexpr int kUnitBytes = 64;

    static FR_WITH_AVX2 FR_INLINE __m256i multiply_add(__m256i sum, __m256i x,
                                                       const char *weights) {
        const __m256i even = _mm256_and_si256(x, _mm256_set1_epi16(0xff));
        const __m256i odd = _mm256_srli_epi16(x, 8);
        const __m256i *w = (const __m256i *)weights;
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, _mm256_load_si256(w)));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(odd, _mm256_load_si256(w + 1)));
    }
};

}  // namespace fastres

#endif
#endif

// What becomes of a tile's int32 sums, for the tiles of AVX2.

#ifndef FASTRES_FINISH_UINT8_AVX2_H
#define FASTRES_FINISH_UINT8_AVX2_H

#include "activate_avx2.h"
#include "tile.h"

#ifdef FR_X86

namespace fastres {

// 8 of a pixel's channels, from the panel's 8 * `v`: as finish_any_uint8() of AVX-512.
FR_WITH_AVX2 FR_INLINE void finish_uint8(const Tile &t, int i, int v, __m256i sum) {
    const int present = t.channels - v * 8;
    if (present <= 0) return;
    char *to = t.output + (int64_t)t.output_px[i] * 4;
    __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(t.multiplier + v * 8));
    x = activate(t, t.before, v * 8, x);
    if (t.residual) {
        const char *from = t.residual + (int64_t)t.residual_px[i] * 4 + v * 8;
        const __m256i q = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
        const __m256i r = _mm256_sub_epi32(q, _mm256_set1_epi32(t.residual_zero));
        x = _mm256_add_ps(
            x, _mm256_mul_ps(_mm256_cvtepi32_ps(r), _mm256_set1_ps(t.residual_multiplier)));
    }
    x = activate(t, t.after, v * 8, x);
    if (t.rows) {
        const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(present),
                                                _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        _mm256_maskstore_ps((float *)to + v * 8, mask, x);
        return;
    }
    x = _mm256_mul_ps(x, _mm256_set1_ps(t.output_multiplier));
    // What is beyond int32 would become its least number.
    const __m256i q = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_set1_ps(kBeyondUint8), x));
    const __m128i both = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    const __m128i shifted = _mm_adds_epi16(both, _mm_set1_epi16((int16_t)t.output_zero));
    _mm_storel_epi64((__m128i *)(to + v * 8), _mm_packus_epi16(shifted, shifted));
}

}  // namespace fastres

#endif
#endif

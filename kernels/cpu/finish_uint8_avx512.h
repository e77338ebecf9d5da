// What becomes of a tile's int32 sums, for the tiles of AVX-512 and AMX: scaled, added to the
// residual, activated, rounded to uint8, stored. Bit for bit what fastres/kernels/quantized.py
// says: each product and each sum is rounded to float32 by itself (so no fused multiply-adds, see
// -ffp-contract in pyproject.toml), and half goes to even.

#ifndef FASTRES_FINISH_UINT8_AVX512_H
#define FASTRES_FINISH_UINT8_AVX512_H

#include "activate_avx512.h"
#include "tile.h"

#ifdef FR_X86

namespace fastres {

#define FR_VNNI FR_WITH_AVX512_VNNI

FR_VNNI FR_INLINE __m512 scaled_sum(__m512i sum, const float *multiplier) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(multiplier));
}

// 16 of the residual's channels.
FR_VNNI FR_INLINE __m512 scaled_residual(const Tile &t, const char *from) {
    const __m512i q = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)from));
    const __m512i x = _mm512_sub_epi32(q, _mm512_set1_epi32(t.residual_zero));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(x), _mm512_set1_ps(t.residual_multiplier));
}

// As int32, half to even. What is beyond int32 would become its least number; from kBeyondUint8 on
// every number is the largest uint8.
FR_VNNI FR_INLINE __m512i rounded(__m512 x) {
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_set1_ps(kBeyondUint8), x));
}

// Whether finish_pair_uint8() and finish_one_uint8() do: a whole panel with no activation but what
// the smallest and largest uint8 do by themselves.
inline bool is_plain_uint8(const Tile &t) {
    return t.channels == 32 && !t.rows && t.before.kind == FR_NONE && t.after.kind == FR_NONE &&
           t.output_multiplier == 1.0f;
}

// Sums of one pixel as 32 int16, the zero added; the packing leaves them in the order that
// in_order() knows.
template <bool RESIDUAL>
FR_VNNI FR_INLINE __m512i rounded_uint8(const Tile &t, int i, __m512i low_sum, __m512i high_sum) {
    __m512 low = scaled_sum(low_sum, t.multiplier), high = scaled_sum(high_sum, t.multiplier + 16);
    if (RESIDUAL) {
        const char *from = t.residual + (int64_t)t.residual_px[i] * 4;
        low = _mm512_add_ps(low, scaled_residual(t, from));
        high = _mm512_add_ps(high, scaled_residual(t, from + 16));
    }
    const __m512i both = _mm512_packs_epi32(rounded(low), rounded(high));
    return _mm512_adds_epi16(both, _mm512_set1_epi16((int16_t)t.output_zero));
}

// Two pixels' channels, one behind the other.
FR_VNNI FR_INLINE __m512i in_order(__m512i first, __m512i second) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second));
}

FR_VNNI FR_INLINE __m256i *place_uint8(const Tile &t, int i) {
    return (__m256i *)(t.output + (int64_t)t.output_px[i] * 4);
}

// The pixels `i` and `i + 1`.
template <bool RESIDUAL>
FR_VNNI FR_INLINE void finish_pair_uint8(const Tile &t, int i, const __m512i (&first)[2],
                                         const __m512i (&second)[2]) {
    const __m512i bytes = in_order(rounded_uint8<RESIDUAL>(t, i, first[0], first[1]),
                                   rounded_uint8<RESIDUAL>(t, i + 1, second[0], second[1]));
    _mm256_store_si256(place_uint8(t, i), _mm512_castsi512_si256(bytes));
    _mm256_store_si256(place_uint8(t, i + 1), _mm512_extracti64x4_epi64(bytes, 1));
}

FR_VNNI FR_INLINE void finish_one_uint8(const Tile &t, int i, const int32_t *sums) {
    const __m512i low = _mm512_load_si512(sums), high = _mm512_load_si512(sums + 16);
    const __m512i one =
        t.residual ? rounded_uint8<true>(t, i, low, high) : rounded_uint8<false>(t, i, low, high);
    _mm256_store_si256(place_uint8(t, i), _mm512_castsi512_si256(in_order(one, one)));
}

// Everything else.
FR_VNNI FR_INLINE void finish_any_uint8(const Tile &t, int i, const int32_t *sums) {
    char *to = t.output + (int64_t)t.output_px[i] * 4;
    for (int half = 0; half < 2; half++) {
        const __mmask16 present = lanes(t.channels - 16 * half);
        if (!present) return;
        __m512 x = scaled_sum(_mm512_load_si512(sums + 16 * half), t.multiplier + 16 * half);
        x = activate(t, t.before, 16 * half, x);
        if (t.residual) {
            const char *from = t.residual + (int64_t)t.residual_px[i] * 4 + 16 * half;
            x = _mm512_add_ps(x, scaled_residual(t, from));
        }
        x = activate(t, t.after, 16 * half, x);
        if (t.rows) {
            _mm512_mask_storeu_ps(to + 64 * half, present, x);
            continue;
        }
        x = _mm512_mul_ps(x, _mm512_set1_ps(t.output_multiplier));
        __m512i q = _mm512_add_epi32(rounded(x), _mm512_set1_epi32(t.output_zero));
        q = _mm512_max_epi32(q, _mm512_setzero_si512());
        _mm512_mask_cvtusepi32_storeu_epi8(to + 16 * half, present, q);
    }
}

}  // namespace fastres

#endif
#endif

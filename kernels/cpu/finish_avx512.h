// What becomes of a tile's sums, for the tiles of AVX-512 and AMX: activations, the residual, the
// store.

#ifndef FASTRES_FINISH_AVX512_H
#define FASTRES_FINISH_AVX512_H

#include <cmath>

#include "target.h"
#include "tile.h"

#ifdef FR_X86

namespace fastres {

#define FR_BF16 FR_WITH_AVX512_BF16

// What a kernel multiplies, and what its lines hold.
struct Float32 {
    static constexpr int kind = FR_FLOAT32, stored = FR_FLOAT32;
};
struct Bfloat16 {
    static constexpr int kind = FR_BFLOAT16, stored = FR_BFLOAT16;
};
struct Bfloat16Sums {
    static constexpr int kind = FR_BFLOAT16, stored = FR_FLOAT32;
};

// NaN stays NaN: MAXPS and MINPS return their second operand where either is NaN.
FR_BF16 FR_INLINE __m512 activate(__m512 x, int kind) {
    const __m512 zero = _mm512_setzero_ps(), six = _mm512_set1_ps(6.0f);
    switch (kind) {
        case FR_RELU: return _mm512_max_ps(zero, x);
        case FR_RELU6: return _mm512_min_ps(six, _mm512_max_ps(zero, x));
        case FR_HARDSWISH: {
            __m512 gate = _mm512_add_ps(x, _mm512_set1_ps(3.0f));
            gate = _mm512_min_ps(six, _mm512_max_ps(zero, gate));
            return _mm512_div_ps(_mm512_mul_ps(x, gate), six);
        }
        default: return x;
    }
}

FR_BF16 FR_INLINE __m512 low_half(__m512i line) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(line)), 16));
}

FR_BF16 FR_INLINE __m512 high_half(__m512i line) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(line, 1)), 16));
}

FR_BF16 FR_INLINE __mmask16 lanes(int count) {
    return count >= 16  ? (__mmask16)0xffff
           : count <= 0 ? (__mmask16)0
                        : (__mmask16)((1u << count) - 1);
}

template <class T>
FR_BF16 FR_INLINE void add_residual(const Tile &t, int i, bool has_high, __m512 &low,
                                    __m512 &high) {
    const char *from = t.residual + (int64_t)t.residual_px[i] * 4;
    if (T::stored == FR_FLOAT32) {
        low = _mm512_add_ps(low, _mm512_load_ps((const float *)from));
        if (has_high)
            high = _mm512_add_ps(high, _mm512_load_ps((const float *)(from + t.residual_plane)));
    } else {
        const __m512i line = _mm512_load_si512(from);
        low = _mm512_add_ps(low, low_half(line));
        high = _mm512_add_ps(high, high_half(line));
    }
}

template <class T>
FR_BF16 FR_INLINE void store(const Tile &t, int i, bool has_high, __m512 low, __m512 high) {
    char *to = t.output + (int64_t)t.output_px[i] * 4;
    if (T::stored == FR_FLOAT32) {
        _mm512_store_ps((float *)to, low);
        if (has_high) _mm512_store_ps((float *)(to + t.output_plane), high);
    } else {
        _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

// Whether finish_plain() does: a whole panel with no activation but a ReLU at the end.
inline bool is_plain(const Tile &t) {
    return t.channels == 32 && !t.rows && t.before == FR_NONE && t.after <= FR_RELU;
}

// `floor`: 0 in every lane for a ReLU, else minus infinity.
template <class T>
FR_BF16 FR_INLINE void finish_plain(const Tile &t, int i, __m512 floor, __m512 low, __m512 high) {
    if (t.residual) add_residual<T>(t, i, true, low, high);
    store<T>(t, i, true, _mm512_max_ps(floor, low), _mm512_max_ps(floor, high));
}

FR_BF16 FR_INLINE __m512 floor_of(const Tile &t) {
    return _mm512_set1_ps(t.after == FR_RELU ? 0.0f : -INFINITY);
}

template <class T>
FR_BF16 FR_INLINE void finish_any(const Tile &t, int i, __m512 low, __m512 high) {
    const __mmask16 low_lanes = lanes(t.channels), high_lanes = lanes(t.channels - 16);
    low = activate(low, t.before);
    high = activate(high, t.before);
    if (t.residual) add_residual<T>(t, i, high_lanes != 0, low, high);
    // Lanes without a channel hold zero whatever the pixel holds: the next layer multiplies them by
    // zero, which infinity would not survive.
    low = _mm512_maskz_mov_ps(low_lanes, activate(low, t.after));
    high = _mm512_maskz_mov_ps(high_lanes, activate(high, t.after));
    if (t.rows) {
        float *to = (float *)(t.output + (int64_t)t.output_px[i] * 4);
        _mm512_mask_storeu_ps(to, low_lanes, low);
        _mm512_mask_storeu_ps(to + 16, high_lanes, high);
    } else {
        store<T>(t, i, high_lanes != 0, low, high);
    }
}

}  // namespace fastres

#endif
#endif

// What becomes of a tile's sums, for the tiles of AVX-512 and AMX: activations, the residual, the
// store.

#ifndef FASTRES_FINISH_AVX512_H
#define FASTRES_FINISH_AVX512_H

#include <cmath>

#include "activate_avx512.h"
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

// Of a pixel's channels, for Winograd's transforms.
using Sixteen = __m512;

FR_BF16 FR_INLINE Sixteen any_sixteen(const float *from) { return _mm512_loadu_ps(from); }

// 16 channels: all of a line of float32, or half of one of bfloat16.
template <class T>
FR_BF16 FR_INLINE Sixteen load_sixteen(const char *from) {
    if (T::stored == FR_FLOAT32) return _mm512_load_ps(from);
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i *)from)), 16));
}

template <class T>
FR_BF16 FR_INLINE void store_sixteen(char *to, Sixteen x) {
    if (T::stored == FR_FLOAT32)
        _mm512_store_ps(to, x);
    else
        _mm256_store_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

FR_BF16 FR_INLINE __m512 low_half(__m512i line) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(line)), 16));
}

FR_BF16 FR_INLINE __m512 high_half(__m512i line) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(line, 1)), 16));
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
    return t.channels == 32 && !t.rows && t.before.kind == FR_NONE && t.after.kind <= FR_RELU;
}

// `floor`: 0 in every lane for a ReLU, else minus infinity.
template <class T>
FR_BF16 FR_INLINE void finish_plain(const Tile &t, int i, __m512 floor, __m512 low, __m512 high) {
    if (t.residual) add_residual<T>(t, i, true, low, high);
    store<T>(t, i, true, _mm512_max_ps(floor, low), _mm512_max_ps(floor, high));
}

FR_BF16 FR_INLINE __m512 floor_of(const Tile &t) {
    return _mm512_set1_ps(t.after.kind == FR_RELU ? 0.0f : -INFINITY);
}

template <class T>
FR_BF16 FR_INLINE void finish_any(const Tile &t, int i, __m512 low, __m512 high) {
    const __mmask16 low_lanes = lanes(t.channels), high_lanes = lanes(t.channels - 16);
    low = activate(t, t.before, 0, low);
    high = activate(t, t.before, 16, high);
    if (t.residual) add_residual<T>(t, i, high_lanes != 0, low, high);
    // Lanes without a channel hold zero whatever the pixel holds: the next layer multiplies them by
    // zero, which infinity would not survive.
    low = _mm512_maskz_mov_ps(low_lanes, activate(t, t.after, 0, low));
    high = _mm512_maskz_mov_ps(high_lanes, activate(t, t.after, 16, high));
    if (t.rows) {
        float *to = (float *)(t.output + (int64_t)t.output_px[i] * 4);
        _mm512_mask_storeu_ps(to, low_lanes, low);
        _mm512_mask_storeu_ps(to + 16, high_lanes, high);
    } else {
        store<T>(t, i, high_lanes != 0, low, high);
    }
}

// The ends of single pixels that are alike but for where they lie.
template <class T>
struct Ending {
    bool plain;
    __m512 floor;

    FR_BF16 FR_INLINE explicit Ending(const Tile &t) : plain(is_plain(t)), floor(floor_of(t)) {}
    FR_BF16 FR_INLINE void finish(const Tile &t, __m512 low, __m512 high) const {
        if (plain)
            finish_plain<T>(t, 0, floor, low, high);
        else
            finish_any<T>(t, 0, low, high);
    }
};

// Whatever there may be at the end, once for all sizes of tiles: it has every activation in it.
template <class T>
FR_BF16 __attribute__((noinline)) void finish_each(const Tile &t, int pixels,
                                                   const float (*sums)[32]) {
    for (int i = 0; i < pixels; i++)
        finish_any<T>(t, i, _mm512_load_ps(sums[i]), _mm512_load_ps(sums[i] + 16));
}

// The ends of `pixels` pixels whose sums, bias included, lie in memory.
template <class T>
FR_BF16 FR_INLINE void finish_sums(const Tile &t, int pixels, const float (*sums)[32]) {
    if (!is_plain(t)) return finish_each<T>(t, pixels, sums);
    const __m512 floor = floor_of(t);
    for (int i = 0; i < pixels; i++)
        finish_plain<T>(t, i, floor, _mm512_load_ps(sums[i]), _mm512_load_ps(sums[i] + 16));
}

// The same of sums that are still in registers.
template <class T, int M>
FR_BF16 FR_INLINE void finish_sums(const Tile &t, const __m512 (&sum)[M][2]) {
    if (is_plain(t)) {
        const __m512 floor = floor_of(t);
#pragma GCC unroll 16
        for (int i = 0; i < M; i++) finish_plain<T>(t, i, floor, sum[i][0], sum[i][1]);
        return;
    }
    alignas(64) float sums[M][32];
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
        _mm512_store_ps(sums[i], sum[i][0]);
        _mm512_store_ps(sums[i] + 16, sum[i][1]);
    }
    finish_each<T>(t, M, sums);
}

}  // namespace fastres

#endif
#endif

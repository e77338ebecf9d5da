// Convolution tiles for AVX-512: up to 14 pixels by 32 channels in 28 registers.
//
// Per unit of K: two loads of weights, and for each pixel one broadcast and two multiply-adds. The
// pixels' addresses are arbitrary; they are computed once per step, which is 16 units long in all
// layers but the stem. float32 and bfloat16 differ in the multiply-add only: a unit of bfloat16 is
// a pair of channels, and VDPBF16PS adds both products (Intel Architecture Instruction Set
// Extensions Programming Reference, "VDPBF16PS").

#include <algorithm>

#include "finish_avx512.h"

#ifdef FR_X86

namespace fastres {
namespace {

template <class T>
FR_BF16 FR_INLINE __m512 multiply_add(__m512 sum, __m512 a, __m512 b) {
    if (T::kind == FR_FLOAT32) return _mm512_fmadd_ps(a, b, sum);
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

template <class T, int M>
FR_BF16 FR_INLINE void unit(__m512 (&sum)[M][2], const char *const (&at)[M], int byte,
                            const char *weights) {
    const __m512 low = _mm512_load_ps((const float *)weights);
    const __m512 high = _mm512_load_ps((const float *)(weights + 64));
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
        const __m512 a = _mm512_set1_ps(*(const float *)(at[i] + byte));
        sum[i][0] = multiply_add<T>(sum[i][0], a, low);
        sum[i][1] = multiply_add<T>(sum[i][1], a, high);
    }
}

// A float32 sum is one of sums of at most so many products: rounding grows with the length of a
// chain.
constexpr int kChain = 256;

template <int M>
FR_BF16 FR_INLINE void put_aside(__m512 (&sum)[M][2], float (&aside)[M][32]) {
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
        _mm512_store_ps(aside[i], sum[i][0]);
        _mm512_store_ps(aside[i] + 16, sum[i][1]);
        sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    }
}

template <int M>
FR_BF16 FR_INLINE void put_together(__m512 (&sum)[M][2], const float (&aside)[M][32]) {
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
        sum[i][0] = _mm512_add_ps(sum[i][0], _mm512_load_ps(aside[i]));
        sum[i][1] = _mm512_add_ps(sum[i][1], _mm512_load_ps(aside[i] + 16));
    }
}

template <int M>
FR_BF16 FR_INLINE void add_bias(__m512 (&sum)[M][2], const float *bias) {
    const __m512 low = _mm512_loadu_ps(bias), high = _mm512_loadu_ps(bias + 16);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
        sum[i][0] = _mm512_add_ps(sum[i][0], low);
        sum[i][1] = _mm512_add_ps(sum[i][1], high);
    }
}

// UNITS: of a step; 0 where it is not known before.
template <class T, int M, int UNITS>
FR_BF16 void tile(const Tile &t) {
    __m512 sum[M][2];
    // To float32 the bias comes last: were it first, every product would be rounded at its size.
    constexpr bool kBiasFirst = T::kind == FR_BFLOAT16;
    const float *bias = (const float *)t.bias;
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
        sum[i][0] = kBiasFirst ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
        sum[i][1] = kBiasFirst ? _mm512_loadu_ps(bias + 16) : _mm512_setzero_ps();
    }
    if (t.residual)
        for (int i = 0; i < M; i++) {
            const char *line = t.residual + (int64_t)t.residual_px[i] * 4;
            _mm_prefetch(line, _MM_HINT_T0);
            if (T::stored == FR_FLOAT32) _mm_prefetch(line + t.residual_plane, _MM_HINT_T0);
        }
    const char *weights = t.weights;
    const char *ahead = t.ahead;
    const int units = UNITS ? UNITS : t.step_units;
    const int chain = T::kind == FR_FLOAT32 ? std::max(1, kChain / units) : t.step_count;
    alignas(64) float aside[M][32];
    for (int first = 0; first < t.step_count; first += chain) {
        const int end = std::min(first + chain, t.step_count);
        for (int s = first; s < end; s++) {
            const char *start = t.input + (int64_t)t.steps[s] * 4;
            const char *at[M];
#pragma GCC unroll 16
            for (int i = 0; i < M; i++) at[i] = start + (int64_t)t.input_px[i] * 4;
            for (int line = 0; line < t.ahead_lines; line++, ahead += 64)
                _mm_prefetch(ahead, _MM_HINT_T1);
            if (t.next_px)
                for (int i = 0; i < M; i++)
                    _mm_prefetch(start + (int64_t)t.next_px[i] * 4, _MM_HINT_T0);
            if (UNITS) {
#pragma GCC unroll 16
                for (int u = 0; u < UNITS; u++) unit<T, M>(sum, at, u * 4, weights + u * 128);
            } else {
#pragma GCC unroll 1
                for (int u = 0; u < units; u++) unit<T, M>(sum, at, u * 4, weights + u * 128);
            }
            weights += units * 128;
        }
        if (T::kind == FR_BFLOAT16) break;
        if (first) put_together<M>(sum, aside);
        if (end < t.step_count) put_aside<M>(sum, aside);
    }
    if (!kBiasFirst) add_bias<M>(sum, bias);
    finish_sums<T>(t, sum);
}

template <class T, int UNITS>
TileFunction choose(int pixels) {
    static const TileFunction table[kMostPixels] = {
        tile<T, 1, UNITS>,  tile<T, 2, UNITS>,  tile<T, 3, UNITS>,  tile<T, 4, UNITS>,
        tile<T, 5, UNITS>,  tile<T, 6, UNITS>,  tile<T, 7, UNITS>,  tile<T, 8, UNITS>,
        tile<T, 9, UNITS>,  tile<T, 10, UNITS>, tile<T, 11, UNITS>, tile<T, 12, UNITS>,
        tile<T, 13, UNITS>, tile<T, 14, UNITS>,
    };
    return pixels >= 1 && pixels <= kMostPixels ? table[pixels - 1] : nullptr;
}

}  // namespace

TileFunction avx512_float32(int pixels, int step_units) {
    return step_units == 16 ? choose<Float32, 16>(pixels) : choose<Float32, 0>(pixels);
}

TileFunction avx512_bfloat16(int pixels, int step_units) {
    return step_units == 16 ? choose<Bfloat16, 16>(pixels) : choose<Bfloat16, 0>(pixels);
}

TileFunction avx512_bfloat16_sums(int pixels) { return choose<Bfloat16Sums, 16>(pixels); }

}  // namespace fastres

#endif

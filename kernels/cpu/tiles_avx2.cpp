// Convolution tiles for AVX2: up to 6 pixels by 16 channels in 12 registers.
//
// As for AVX-512 (tiles_avx512.cpp), with half as many registers of half the length: a panel's 32
// channels are two passes of 16 over its weights. Three pixels and fewer take all 32 at once.

#include <algorithm>
#include <cmath>

#include "finish_avx2.h"

#ifdef FR_X86

namespace fastres {
namespace {

constexpr int kMost = 6;  // pixels

// Keeps compilers to the order in which the registers suffice; their own schedules spill some.
FR_WITH_AVX2 FR_INLINE void multiply_add(__m256 &sum, __m256 a, __m256 b) {
    sum = _mm256_fmadd_ps(a, b, sum);
    __asm__ volatile("" : "+x"(sum) : : "memory");
}

// 12 sums, and two weights and one pixel or, where there are more weights, one weight and three
// pixels.
template <int M, int VECTORS>
FR_WITH_AVX2 FR_INLINE void unit(__m256 (&sum)[M][VECTORS], const char *const (&at)[M], int byte,
                                 const char *weights) {
    const float *w = (const float *)weights;
    if (VECTORS == 2) {
        const __m256 low = _mm256_load_ps(w), high = _mm256_load_ps(w + 8);
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            const __m256 a = _mm256_broadcast_ss((const float *)(at[i] + byte));
            multiply_add(sum[i][0], a, low);
            multiply_add(sum[i][1], a, high);
        }
    } else {
        __m256 a[M];
#pragma GCC unroll 3
        for (int i = 0; i < M; i++) a[i] = _mm256_broadcast_ss((const float *)(at[i] + byte));
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            const __m256 b = _mm256_load_ps(w + v * 8);
#pragma GCC unroll 3
            for (int i = 0; i < M; i++) multiply_add(sum[i][v], a[i], b);
        }
    }
}

// A sum is one of sums of at most so many products: rounding grows with the length of a chain.
constexpr int kChain = 256;

template <int M, int VECTORS>
FR_WITH_AVX2 FR_INLINE void put_aside(__m256 (&sum)[M][VECTORS], float (&sums)[M][VECTORS][8]) {
#pragma GCC unroll 6
    for (int i = 0; i < M; i++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            _mm256_store_ps(sums[i][v], sum[i][v]);
            sum[i][v] = _mm256_setzero_ps();
        }
    }
}

template <int M, int VECTORS>
FR_WITH_AVX2 FR_INLINE void put_together(__m256 (&sum)[M][VECTORS],
                                         const float (&sums)[M][VECTORS][8]) {
#pragma GCC unroll 6
    for (int i = 0; i < M; i++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            sum[i][v] = _mm256_add_ps(sum[i][v], _mm256_load_ps(sums[i][v]));
    }
}

// M pixels, `VECTORS` eights of channels from the panel's `first`. UNITS: of a step; 0 where it is
// not known before. `ahead_lines`: what to read ahead in this pass.
template <int M, int VECTORS, int UNITS>
FR_WITH_AVX2 FR_INLINE void pass(const Tile &t, int first, int ahead_lines) {
    __m256 sum[M][VECTORS];
#pragma GCC unroll 6
    for (int i = 0; i < M; i++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sum[i][v] = _mm256_setzero_ps();
    }
    const char *weights = t.weights + first * 32;
    const char *ahead = t.ahead;
    const int units = UNITS ? UNITS : t.step_units;
    constexpr int kUnroll = UNITS ? 4 : 1;
    const int chain = std::max(1, kChain / units);
    alignas(32) float sums[M][VECTORS][8];
    for (int begin = 0; begin < t.step_count; begin += chain) {
        const int end = std::min(begin + chain, t.step_count);
        for (int s = begin; s < end; s++) {
            const char *start = t.input + (int64_t)t.steps[s] * 4;
            const char *at[M];
#pragma GCC unroll 6
            for (int i = 0; i < M; i++) at[i] = start + (int64_t)t.input_px[i] * 4;
            for (int line = 0; line < ahead_lines; line++, ahead += 64)
                _mm_prefetch(ahead, _MM_HINT_T1);
#pragma GCC unroll 1
            for (int u = 0; u < units; u += kUnroll, weights += kUnroll * 128) {
#pragma GCC unroll 4
                for (int k = 0; k < kUnroll; k++)
                    unit<M, VECTORS>(sum, at, (u + k) * 4, weights + k * 128);
            }
        }
        if (begin) put_together(sum, sums);
        if (end < t.step_count) put_aside(sum, sums);
    }
    // The bias comes last: were it first, every product would be rounded at its size.
    const float *bias = (const float *)t.bias;
#pragma GCC unroll 6
    for (int i = 0; i < M; i++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            sum[i][v] = _mm256_add_ps(sum[i][v], _mm256_loadu_ps(bias + (first + v) * 8));
    }
    if (t.channels >= (first + VECTORS) * 8 && !t.rows && t.before.kind == FR_NONE &&
        t.after.kind <= FR_RELU) {
        const __m256 floor = _mm256_set1_ps(t.after.kind == FR_RELU ? 0.0f : -INFINITY);
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            char *to = t.output + (int64_t)t.output_px[i] * 4;
            const char *from = t.residual ? t.residual + (int64_t)t.residual_px[i] * 4 : nullptr;
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) {
                __m256 x = sum[i][v];
                if (from)
                    x = _mm256_add_ps(
                        x,
                        _mm256_load_ps((const float *)(from + place(first + v, t.residual_plane))));
                _mm256_store_ps((float *)(to + place(first + v, t.output_plane)),
                                _mm256_max_ps(floor, x));
            }
        }
        return;
    }
    put_aside(sum, sums);
    finish_any(t, M, first, VECTORS, sums[0][0]);
}

template <int M, int UNITS>
FR_WITH_AVX2 void tile(const Tile &t) {
    if (M <= kMost / 2 && t.channels > 16)
        return pass<M <= kMost / 2 ? M : 1, 4, UNITS>(t, 0, t.ahead_lines);
    pass<M, 2, UNITS>(t, 0, t.ahead_lines);
    if (t.channels > 16) pass<M, 2, UNITS>(t, 2, 0);
}

template <int UNITS>
TileFunction choose(int pixels) {
    static const TileFunction table[kMost] = {tile<1, UNITS>, tile<2, UNITS>, tile<3, UNITS>,
                                              tile<4, UNITS>, tile<5, UNITS>, tile<6, UNITS>};
    return pixels >= 1 && pixels <= kMost ? table[pixels - 1] : nullptr;
}

}  // namespace

TileFunction avx2_float32(int pixels, int step_units) {
    return step_units == 16 ? choose<16>(pixels) : choose<0>(pixels);
}

}  // namespace fastres

#endif

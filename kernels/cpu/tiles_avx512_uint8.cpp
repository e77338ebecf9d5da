// Convolution tiles of uint8 by int8 for AVX-512 with VNNI: up to 14 pixels by 32 channels.
//
// As tiles_avx512.cpp, with four channels in a unit: VPDPBUSD adds their four products to an int32
// (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, "VPDPBUSD"). Nothing is
// rounded or saturated before the end, so the order of the sums does not matter.

#include "finish_uint8_avx512.h"

#ifdef FR_X86

namespace fastres {
namespace {

template <int M>
FR_VNNI FR_INLINE void unit(__m512i (&sum)[M][2], const char *const (&at)[M], int byte,
                            const char *weights) {
    const __m512i low = _mm512_load_si512(weights), high = _mm512_load_si512(weights + 64);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
        const __m512i a = _mm512_set1_epi32(*(const int32_t *)(at[i] + byte));
        sum[i][0] = _mm512_dpbusd_epi32(sum[i][0], a, low);
        sum[i][1] = _mm512_dpbusd_epi32(sum[i][1], a, high);
    }
}

template <bool RESIDUAL, int M>
FR_VNNI FR_INLINE void finish_plain(const Tile &t, const __m512i (&sum)[M][2]) {
#pragma GCC unroll 16
    for (int i = 0; i + 1 < M; i += 2) finish_pair_uint8<RESIDUAL>(t, i, sum[i], sum[i + 1]);
    if (M % 2) {
        const __m512i one = rounded_uint8<RESIDUAL>(t, M - 1, sum[M - 1][0], sum[M - 1][1]);
        _mm256_store_si256(place_uint8(t, M - 1), _mm512_castsi512_si256(in_order(one, one)));
    }
}

FR_VNNI __attribute__((noinline)) void finish_all(const Tile &t, int pixels, const int32_t *sums) {
    for (int i = 0; i < pixels; i++, sums += 32) finish_any_uint8(t, i, sums);
}

// UNITS: of a step; 0 where it is not known before.
template <int M, int UNITS>
FR_VNNI void tile(const Tile &t) {
    const int32_t *bias = (const int32_t *)t.bias;
    __m512i sum[M][2];
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
        sum[i][0] = _mm512_loadu_si512(bias);
        sum[i][1] = _mm512_loadu_si512(bias + 16);
    }
    if (t.residual)
        for (int i = 0; i < M; i++)
            _mm_prefetch(t.residual + (int64_t)t.residual_px[i] * 4, _MM_HINT_T0);
    const char *weights = t.weights;
    const char *ahead = t.ahead;
    const int units = UNITS ? UNITS : t.step_units;
    for (int s = 0; s < t.step_count; s++) {
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
            for (int u = 0; u < UNITS; u++) unit<M>(sum, at, u * 4, weights + u * 128);
        } else {
#pragma GCC unroll 1
            for (int u = 0; u < units; u++) unit<M>(sum, at, u * 4, weights + u * 128);
        }
        weights += units * 128;
    }
    if (is_plain_uint8(t)) {
        if (t.residual)
            finish_plain<true>(t, sum);
        else
            finish_plain<false>(t, sum);
        return;
    }
    alignas(64) int32_t sums[M][32];
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
        _mm512_store_si512(sums[i], sum[i][0]);
        _mm512_store_si512(sums[i] + 16, sum[i][1]);
    }
    finish_all(t, M, sums[0]);
}

template <int UNITS>
TileFunction choose(int pixels) {
    static const TileFunction table[kMostPixels] = {
        tile<1, UNITS>,  tile<2, UNITS>,  tile<3, UNITS>,  tile<4, UNITS>,  tile<5, UNITS>,
        tile<6, UNITS>,  tile<7, UNITS>,  tile<8, UNITS>,  tile<9, UNITS>,  tile<10, UNITS>,
        tile<11, UNITS>, tile<12, UNITS>, tile<13, UNITS>, tile<14, UNITS>,
    };
    return pixels >= 1 && pixels <= kMostPixels ? table[pixels - 1] : nullptr;
}

}  // namespace

TileFunction avx512_vnni_uint8(int pixels, int step_units) {
    return step_units == 16 ? choose<16>(pixels) : choose<0>(pixels);
}

}  // namespace fastres

#endif

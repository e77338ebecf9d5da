// Tiles of depthwise convolutions for AVX-512: up to 14 pixels by 32 channels in 28 registers.
//
// Each channel's numbers are multiplied lane by lane. Two taps of bfloat16, or four of uint8, are
// interleaved so that a lane's unit holds a number of each, and VDPBF16PS and VPDPBUSD multiply and
// add them at once. That is done within 128 bits, so the sums of a panel's channels are in another
// order, which the weights follow (pack.py), until they are finished.

#include <algorithm>

#include "sums_avx512.h"

#ifdef FR_X86

namespace fastres {
namespace {

// A float32 sum is one of sums of at most so many products.
constexpr int kChain = 256;

template <int M>
FR_ANY void tile_float32(const Tile &t) {
    alignas(64) float sums[M][32];
    const float *bias = (const float *)t.bias;
    // Where there is no second line the first is read again, and its sums go nowhere.
    const int64_t second = t.channels > 16 ? t.input_plane : 0;
    const char *weights = t.weights;
    for (int first = 0; first < t.step_count; first += kChain) {
        const int end = std::min(first + kChain, t.step_count);
        __m512 sum[M][2];
#pragma GCC unroll 16
        for (int i = 0; i < M; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
        for (int s = first; s < end; s++, weights += 128) {
            const char *start = t.input + (int64_t)t.steps[s] * 4;
            const __m512 low = _mm512_load_ps((const float *)weights);
            const __m512 high = _mm512_load_ps((const float *)(weights + 64));
#pragma GCC unroll 16
            for (int i = 0; i < M; i++) {
                const char *at = start + (int64_t)t.input_px[i] * 4;
                sum[i][0] = _mm512_fmadd_ps(_mm512_load_ps((const float *)at), low, sum[i][0]);
                sum[i][1] =
                    _mm512_fmadd_ps(_mm512_load_ps((const float *)(at + second)), high, sum[i][1]);
            }
        }
        // The bias comes last: were it first, every product would be rounded at its size.
        const bool last = end == t.step_count;
        const __m512 low = last ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
        const __m512 high = last ? _mm512_loadu_ps(bias + 16) : _mm512_setzero_ps();
#pragma GCC unroll 16
        for (int i = 0; i < M; i++) {
            if (first) {
                sum[i][0] = _mm512_add_ps(sum[i][0], _mm512_load_ps(sums[i]));
                sum[i][1] = _mm512_add_ps(sum[i][1], _mm512_load_ps(sums[i] + 16));
            }
            sum[i][0] = _mm512_add_ps(sum[i][0], low);
            sum[i][1] = _mm512_add_ps(sum[i][1], high);
        }
        if (last) return finish_sums<Float32>(t, sum);
#pragma GCC unroll 16
        for (int i = 0; i < M; i++) {
            _mm512_store_ps(sums[i], sum[i][0]);
            _mm512_store_ps(sums[i] + 16, sum[i][1]);
        }
    }
}

template <int M>
FR_ANY void tile_bfloat16(const Tile &t) {
    __m512 sum[M][2];
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    const char *weights = t.weights;
    for (int s = 0; s < t.step_count; s++, weights += 128) {
        const char *even = t.input + (int64_t)t.steps[2 * s] * 4;
        const char *odd = t.input + (int64_t)t.steps[2 * s + 1] * 4;
        const __m512i low = _mm512_load_si512(weights), high = _mm512_load_si512(weights + 64);
#pragma GCC unroll 16
        for (int i = 0; i < M; i++) {
            const int64_t at = (int64_t)t.input_px[i] * 4;
            const __m512i a = _mm512_load_si512(even + at), b = _mm512_load_si512(odd + at);
            sum[i][0] =
                _mm512_dpbf16_ps(sum[i][0], (__m512bh)_mm512_unpacklo_epi16(a, b), (__m512bh)low);
            sum[i][1] =
                _mm512_dpbf16_ps(sum[i][1], (__m512bh)_mm512_unpackhi_epi16(a, b), (__m512bh)high);
        }
    }
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    const float *bias = (const float *)t.bias;
    const __m512 low = _mm512_loadu_ps(bias), high = _mm512_loadu_ps(bias + 16);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
        const __m512 a = sum[i][0], b = sum[i][1];
        sum[i][0] = _mm512_add_ps(low, _mm512_permutex2var_ps(a, first, b));
        sum[i][1] = _mm512_add_ps(high, _mm512_permutex2var_ps(a, second, b));
    }
    finish_sums<Bfloat16>(t, sum);
}

// 32 channels of each of two pixels.
FR_ANY FR_INLINE __m512i two(const char *one, const char *other) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_load_si256((const __m256i *)one)),
                              _mm256_load_si256((const __m256i *)other), 1);
}

FR_ANY FR_INLINE __m512i for_two(const char *weights) {
    return _mm512_broadcast_i64x4(_mm256_load_si256((const __m256i *)weights));
}

// Two pieces of 128 bits of each of two registers. (With a mask, because GCC 12 says of the
// intrinsic without one that it reads what nobody has set.)
template <int WHICH>
FR_ANY FR_INLINE __m512i pieces(__m512i a, __m512i b) {
    return _mm512_maskz_shuffle_i64x2(0xff, a, b, WHICH);
}

// Pairs of pixels: a register holds 8 channels of each. An odd last one is a pair with itself.
template <int M>
FR_ANY void tile_uint8(const Tile &t) {
    constexpr int kPairs = (M + 1) / 2;
    __m512i sum[kPairs][4];
#pragma GCC unroll 8
    for (int i = 0; i < kPairs; i++)
        sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = _mm512_setzero_si512();
    const char *weights = t.weights;
    for (int s = 0; s < t.step_count; s++, weights += 128) {
        const char *tap[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) tap[k] = t.input + (int64_t)t.steps[4 * s + k] * 4;
#pragma GCC unroll 8
        for (int i = 0; i < kPairs; i++) {
            const int64_t one = (int64_t)t.input_px[2 * i] * 4;
            const int64_t other = (int64_t)t.input_px[2 * i + 1 < M ? 2 * i + 1 : 2 * i] * 4;
            const __m512i a = two(tap[0] + one, tap[0] + other);
            const __m512i b = two(tap[1] + one, tap[1] + other);
            const __m512i c = two(tap[2] + one, tap[2] + other);
            const __m512i d = two(tap[3] + one, tap[3] + other);
            const __m512i ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
            const __m512i ef = _mm512_unpackhi_epi8(a, b), gh = _mm512_unpackhi_epi8(c, d);
            sum[i][0] =
                _mm512_dpbusd_epi32(sum[i][0], _mm512_unpacklo_epi16(ab, cd), for_two(weights));
            sum[i][1] = _mm512_dpbusd_epi32(sum[i][1], _mm512_unpackhi_epi16(ab, cd),
                                            for_two(weights + 32));
            sum[i][2] = _mm512_dpbusd_epi32(sum[i][2], _mm512_unpacklo_epi16(ef, gh),
                                            for_two(weights + 64));
            sum[i][3] = _mm512_dpbusd_epi32(sum[i][3], _mm512_unpackhi_epi16(ef, gh),
                                            for_two(weights + 96));
        }
    }
    const int32_t *bias = (const int32_t *)t.bias;
    const __m512i low = _mm512_loadu_si512(bias), high = _mm512_loadu_si512(bias + 16);
    alignas(64) int32_t sums[2 * kPairs][32];
#pragma GCC unroll 8
    for (int i = 0; i < kPairs; i++) {
        // Sixteen pieces of 4 channels, those of the first pixel in the lower halves.
        const __m512i a = pieces<0x44>(sum[i][0], sum[i][1]);
        const __m512i b = pieces<0x44>(sum[i][2], sum[i][3]);
        const __m512i c = pieces<0xee>(sum[i][0], sum[i][1]);
        const __m512i d = pieces<0xee>(sum[i][2], sum[i][3]);
        int32_t (*to)[32] = sums + 2 * i;
        _mm512_store_si512(to[0], _mm512_add_epi32(low, pieces<0x88>(a, b)));
        _mm512_store_si512(to[0] + 16, _mm512_add_epi32(high, pieces<0xdd>(a, b)));
        _mm512_store_si512(to[1], _mm512_add_epi32(low, pieces<0x88>(c, d)));
        _mm512_store_si512(to[1] + 16, _mm512_add_epi32(high, pieces<0xdd>(c, d)));
    }
    finish_sums<Uint8Sums::Format>(t, M, sums);
}

}  // namespace

TileFunction avx512_depthwise_float32(int pixels) {
    static const TileFunction table[kMostPixels] = {
        tile_float32<1>,  tile_float32<2>,  tile_float32<3>,  tile_float32<4>,  tile_float32<5>,
        tile_float32<6>,  tile_float32<7>,  tile_float32<8>,  tile_float32<9>,  tile_float32<10>,
        tile_float32<11>, tile_float32<12>, tile_float32<13>, tile_float32<14>,
    };
    return pixels >= 1 && pixels <= kMostPixels ? table[pixels - 1] : nullptr;
}

TileFunction avx512_depthwise_bfloat16(int pixels) {
    static const TileFunction table[kMostPixels] = {
        tile_bfloat16<1>,  tile_bfloat16<2>,  tile_bfloat16<3>,  tile_bfloat16<4>,
        tile_bfloat16<5>,  tile_bfloat16<6>,  tile_bfloat16<7>,  tile_bfloat16<8>,
        tile_bfloat16<9>,  tile_bfloat16<10>, tile_bfloat16<11>, tile_bfloat16<12>,
        tile_bfloat16<13>, tile_bfloat16<14>,
    };
    return pixels >= 1 && pixels <= kMostPixels ? table[pixels - 1] : nullptr;
}

TileFunction avx512_vnni_depthwise_uint8(int pixels) {
    static const TileFunction table[12] = {
        tile_uint8<1>, tile_uint8<2>, tile_uint8<3>, tile_uint8<4>,  tile_uint8<5>,  tile_uint8<6>,
        tile_uint8<7>, tile_uint8<8>, tile_uint8<9>, tile_uint8<10>, tile_uint8<11>, tile_uint8<12>,
    };
    return pixels >= 1 && pixels <= 12 ? table[pixels - 1] : nullptr;
}

}  // namespace fastres

#endif

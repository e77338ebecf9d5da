// Tiles of depthwise convolutions for AVX2, with and without VNNI: up to 6 pixels by 16 channels of
// float32, twice a panel, and up to 2 pixels by 32 channels of uint8.
//
// As tiles_depthwise_avx512.cpp.

#include <algorithm>

#include "finish_avx2.h"
#include "finish_uint8_avx2.h"
#include "sums_avx2_uint8.h"

#ifdef FR_X86

namespace fastres {
namespace {

constexpr int kMost = 6, kMostUint8 = 2;  // pixels
constexpr int kChain = 256;               // products of a float32 sum that is a part of another

template <int M>
FR_WITH_AVX2 void float32_tile(const Tile &t) {
    alignas(32) float sums[M][2][8];
    for (int line = 0; line < (t.channels > 16 ? 2 : 1); line++) {
        const float *bias = (const float *)t.bias + 16 * line;
        const char *weights = t.weights + 64 * line;
        const char *input = t.input + line * t.input_plane;
        for (int first = 0; first < t.step_count; first += kChain) {
            const int end = std::min(first + kChain, t.step_count);
            __m256 sum[M][2];
#pragma GCC unroll 6
            for (int i = 0; i < M; i++) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
            for (int s = first; s < end; s++, weights += 128) {
                const char *start = input + (int64_t)t.steps[s] * 4;
                const __m256 low = _mm256_load_ps((const float *)weights);
                const __m256 high = _mm256_load_ps((const float *)weights + 8);
#pragma GCC unroll 6
                for (int i = 0; i < M; i++) {
                    const float *at = (const float *)(start + (int64_t)t.input_px[i] * 4);
                    sum[i][0] = _mm256_fmadd_ps(_mm256_load_ps(at), low, sum[i][0]);
                    sum[i][1] = _mm256_fmadd_ps(_mm256_load_ps(at + 8), high, sum[i][1]);
                }
            }
            // The bias comes last: were it first, every product would be rounded at its size.
#pragma GCC unroll 6
            for (int i = 0; i < M; i++)
                for (int half = 0; half < 2; half++) {
                    float *aside = sums[i][half];
                    const __m256 rest =
                        first ? _mm256_load_ps(aside) : _mm256_loadu_ps(bias + 8 * half);
                    _mm256_store_ps(aside, _mm256_add_ps(rest, sum[i][half]));
                }
        }
        finish_any(t, M, 2 * line, 2, sums[0][0]);
    }
}

FR_WITH_AVX2 FR_INLINE __m256i line(const char *at) {
    return _mm256_load_si256((const __m256i *)at);
}

// The sums of 8 channels, bias included.
FR_WITH_AVX2 FR_INLINE __m256i with_bias(const Tile &t, int v, __m256i sum) {
    const int32_t *bias = (const int32_t *)t.bias + 8 * v;
    return _mm256_add_epi32(sum, _mm256_loadu_si256((const __m256i *)bias));
}

// The same body for two targets: a template cannot carry one.
#define FR_UINT8_TILE(TARGET, NAME, DOT)                                                          \
    template <int M>                                                                              \
    TARGET void NAME##_tile(const Tile &t) {                                                      \
        __m256i sum[M][4];                                                                        \
        for (int i = 0; i < M; i++)                                                               \
            for (int v = 0; v < 4; v++) sum[i][v] = _mm256_setzero_si256();                       \
        const char *weights = t.weights;                                                          \
        for (int s = 0; s < t.step_count; s++, weights += 4 * DOT::kUnitBytes) {                  \
            const char *tap[4];                                                                   \
            _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) tap[k] =                          \
                t.input + (int64_t)t.steps[4 * s + k] * 4;                                        \
            _Pragma("GCC unroll 2") for (int i = 0; i < M; i++) {                                 \
                const int64_t at = (int64_t)t.input_px[i] * 4;                                    \
                const __m256i a = line(tap[0] + at), b = line(tap[1] + at);                       \
                const __m256i c = line(tap[2] + at), d = line(tap[3] + at);                       \
                const __m256i ab = _mm256_unpacklo_epi8(a, b), cd = _mm256_unpacklo_epi8(c, d);   \
                const __m256i ef = _mm256_unpackhi_epi8(a, b), gh = _mm256_unpackhi_epi8(c, d);   \
                constexpr int k = DOT::kUnitBytes;                                                \
                sum[i][0] = DOT::multiply_add(sum[i][0], _mm256_unpacklo_epi16(ab, cd), weights); \
                sum[i][1] =                                                                       \
                    DOT::multiply_add(sum[i][1], _mm256_unpackhi_epi16(ab, cd), weights + k);     \
                sum[i][2] =                                                                       \
                    DOT::multiply_add(sum[i][2], _mm256_unpacklo_epi16(ef, gh), weights + 2 * k); \
                sum[i][3] =                                                                       \
                    DOT::multiply_add(sum[i][3], _mm256_unpackhi_epi16(ef, gh), weights + 3 * k); \
            }                                                                                     \
        }                                                                                         \
        for (int i = 0; i < M; i++) {                                                             \
            const __m256i a = sum[i][0], b = sum[i][1], c = sum[i][2], d = sum[i][3];             \
            finish_uint8(t, i, 0, with_bias(t, 0, _mm256_permute2x128_si256(a, b, 0x20)));        \
            finish_uint8(t, i, 1, with_bias(t, 1, _mm256_permute2x128_si256(c, d, 0x20)));        \
            finish_uint8(t, i, 2, with_bias(t, 2, _mm256_permute2x128_si256(a, b, 0x31)));        \
            finish_uint8(t, i, 3, with_bias(t, 3, _mm256_permute2x128_si256(c, d, 0x31)));        \
        }                                                                                         \
    }

FR_UINT8_TILE(FR_WITH_AVX_VNNI, vnni, Vnni)
FR_UINT8_TILE(FR_WITH_AVX2, widened, Widened)

}  // namespace

TileFunction avx2_depthwise_float32(int pixels) {
    static const TileFunction table[kMost] = {float32_tile<1>, float32_tile<2>, float32_tile<3>,
                                              float32_tile<4>, float32_tile<5>, float32_tile<6>};
    return pixels >= 1 && pixels <= kMost ? table[pixels - 1] : nullptr;
}

TileFunction avx2_depthwise_uint8(int pixels) {
    static const TileFunction table[kMostUint8] = {widened_tile<1>, widened_tile<2>};
    return pixels >= 1 && pixels <= kMostUint8 ? table[pixels - 1] : nullptr;
}

TileFunction avx_vnni_depthwise_uint8(int pixels) {
    static const TileFunction table[kMostUint8] = {vnni_tile<1>, vnni_tile<2>};
    return pixels >= 1 && pixels <= kMostUint8 ? table[pixels - 1] : nullptr;
}

}  // namespace fastres

#endif

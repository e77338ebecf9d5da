// Convolution tiles of uint8 by int8 for AVX2, with and without VNNI: up to 6 pixels by 16
// channels.
//
// As tiles_avx2.cpp, with four channels in a unit. Without VNNI there is no exact product of uint8
// and int8 (VPMADDUBSW saturates sums of two), so pixels are widened to int16 in registers, the
// even and the odd channels of a unit by themselves, and weights are int16 in memory: VPMADDWD.

#include "finish_uint8_avx2.h"

#ifdef FR_X86

namespace fastres {
namespace {

constexpr int kMost = 6;  // pixels

// Sums of M pixels by 16 channels; `weights` are those of the unit and the first of them.
struct Vnni {
    static constexpr int kUnitBytes = 128, kVectorBytes = 32;

    template <int M>
    static FR_WITH_AVX_VNNI FR_INLINE void unit(__m256i (&sum)[M][2], const char *const (&at)[M],
                                                int byte, const char *weights) {
        const __m256i low = _mm256_load_si256((const __m256i *)weights);
        const __m256i high = _mm256_load_si256((const __m256i *)(weights + 32));
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            const __m256i a = _mm256_set1_epi32(*(const int32_t *)(at[i] + byte));
            sum[i][0] = _mm256_dpbusd_avx_epi32(sum[i][0], a, low);
            sum[i][1] = _mm256_dpbusd_avx_epi32(sum[i][1], a, high);
        }
    }
};

// A unit is [even channels, odd channels][32][2] int16.
struct Widened {
    static constexpr int kUnitBytes = 256, kVectorBytes = 32;

    template <int M>
    static FR_WITH_AVX2 FR_INLINE void unit(__m256i (&sum)[M][2], const char *const (&at)[M],
                                            int byte, const char *weights) {
        const __m256i lower = _mm256_set1_epi16(0xff);
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++, weights += 128) {
            const __m256i low = _mm256_load_si256((const __m256i *)weights);
            const __m256i high = _mm256_load_si256((const __m256i *)(weights + 32));
#pragma GCC unroll 6
            for (int i = 0; i < M; i++) {
                const __m256i four = _mm256_set1_epi32(*(const int32_t *)(at[i] + byte));
                const __m256i a = odd ? _mm256_srli_epi16(four, 8) : _mm256_and_si256(four, lower);
                sum[i][0] = _mm256_add_epi32(sum[i][0], _mm256_madd_epi16(a, low));
                sum[i][1] = _mm256_add_epi32(sum[i][1], _mm256_madd_epi16(a, high));
            }
        }
    }
};

// M pixels, 16 of the panel's channels from 8 * `first`. The same body for two targets: a template
// cannot carry one.
#define FR_PASS(TARGET, NAME, DOT)                                                                 \
    template <int M>                                                                               \
    TARGET FR_INLINE void NAME(const Tile &t, int first, int ahead_lines) {                        \
        const int32_t *bias = (const int32_t *)t.bias + first * 8;                                 \
        __m256i sum[M][2];                                                                         \
        _Pragma("GCC unroll 6") for (int i = 0; i < M; i++) {                                      \
            sum[i][0] = _mm256_loadu_si256((const __m256i *)bias);                                 \
            sum[i][1] = _mm256_loadu_si256((const __m256i *)(bias + 8));                           \
        }                                                                                          \
        const char *weights = t.weights + first * DOT::kVectorBytes;                               \
        const char *ahead = t.ahead;                                                               \
        for (int s = 0; s < t.step_count; s++) {                                                   \
            const char *start = t.input + (int64_t)t.steps[s] * 4;                                 \
            const char *at[M];                                                                     \
            _Pragma("GCC unroll 6") for (int i = 0; i < M; i++) at[i] =                            \
                start + (int64_t)t.input_px[i] * 4;                                                \
            for (int line = 0; line < ahead_lines; line++, ahead += 64)                            \
                _mm_prefetch(ahead, _MM_HINT_T1);                                                  \
            for (int u = 0; u < t.step_units; u++, weights += DOT::kUnitBytes)                     \
                DOT::unit<M>(sum, at, u * 4, weights);                                             \
        }                                                                                          \
        for (int i = 0; i < M; i++) {                                                              \
            finish_uint8(t, i, first, sum[i][0]);                                                  \
            finish_uint8(t, i, first + 1, sum[i][1]);                                              \
        }                                                                                          \
    }                                                                                              \
    template <int M>                                                                               \
    TARGET void NAME##_tile(const Tile &t) {                                                       \
        NAME<M>(t, 0, t.ahead_lines);                                                              \
        if (t.channels > 16) NAME<M>(t, 2, 0);                                                     \
    }                                                                                              \
    TileFunction NAME##_choose(int pixels) {                                                       \
        static const TileFunction table[kMost] = {NAME##_tile<1>, NAME##_tile<2>, NAME##_tile<3>,  \
                                                  NAME##_tile<4>, NAME##_tile<5>, NAME##_tile<6>}; \
        return pixels >= 1 && pixels <= kMost ? table[pixels - 1] : nullptr;                       \
    }

FR_PASS(FR_WITH_AVX_VNNI, vnni, Vnni)
FR_PASS(FR_WITH_AVX2, widened, Widened)

}  // namespace

TileFunction avx_vnni_uint8(int pixels, int) { return vnni_choose(pixels); }
TileFunction avx2_uint8(int pixels, int) { return widened_choose(pixels); }

}  // namespace fastres

#endif

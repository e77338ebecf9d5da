// Tiles of grouped convolutions for AVX2, with and without VNNI: up to 6 pixels by 8 channels in as
// many registers, four times a panel.
//
// As tiles_grouped_avx512.cpp, with half a line in a register. Weights are read from memory where
// they are multiplied, since there are 16 registers.

#include "finish_avx2.h"
#include "finish_uint8_avx2.h"
#include "sums_avx2_uint8.h"

#ifdef FR_X86

namespace fastres {
namespace {

constexpr int kMost = 6;      // pixels
constexpr int kVectors = 4;   // of a panel
constexpr int kChain = 256;   // products of a float32 sum that is a part of another
constexpr int kIndices = 32;  // bytes of a unit's

template <int M, int UNITS>
FR_WITH_AVX2 void float32_tile(const Tile &t) {
    alignas(32) float sums[M * kVectors * 8];
    const int vectors = t.channels > 16 ? 4 : 2, reads = t.read_count / kVectors;
    const char *weights = t.weights;
    const int32_t *read = t.reads;
    for (int v = 0; v < vectors; v++) {
        const __m256 bias = _mm256_loadu_ps((const float *)t.bias + v * 8);
        __m256 sum[M];
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            sum[i] = _mm256_setzero_ps();
            _mm256_store_ps(sums + (i * vectors + v) * 8, bias);
        }
        // The bias comes last: were it first, every product would be rounded at its size.
        const auto put_aside = [&]() FR_WITH_AVX2 {
#pragma GCC unroll 6
            for (int i = 0; i < M; i++) {
                float *aside = sums + (i * vectors + v) * 8;
                _mm256_store_ps(aside, _mm256_add_ps(_mm256_load_ps(aside), sum[i]));
                sum[i] = _mm256_setzero_ps();
            }
        };
        int products = 0;
        for (int r = 0; r < reads; r++, read++) {
            const char *input = t.input + (int64_t)*read * 4;
            __m256i index[UNITS];
#pragma GCC unroll 4
            for (int u = 0; u < UNITS; u++, weights += kIndices)
                index[u] = _mm256_load_si256((const __m256i *)weights);
            for (int s = 0; s < t.step_count; s++, weights += UNITS * 32) {
                const char *start = input + (int64_t)t.steps[s] * 4;
#pragma GCC unroll 6
                for (int i = 0; i < M; i++) {
                    const __m256 line =
                        _mm256_load_ps((const float *)(start + (int64_t)t.input_px[i] * 4));
#pragma GCC unroll 4
                    for (int u = 0; u < UNITS; u++)
                        sum[i] =
                            _mm256_fmadd_ps(_mm256_permutevar8x32_ps(line, index[u]),
                                            _mm256_load_ps((const float *)weights + u * 8), sum[i]);
                }
                products += UNITS;
                if (products < kChain) continue;
                products = 0;
                put_aside();
            }
        }
        put_aside();
    }
    finish_any(t, M, 0, vectors, sums);
}

// The same body for two targets: a template cannot carry one.
#define FR_UINT8_TILE(TARGET, NAME, DOT)                                                           \
    template <int M, int UNITS>                                                                    \
    TARGET void NAME##_tile(const Tile &t) {                                                       \
        const int vectors = (t.channels + 7) / 8, reads = t.read_count / kVectors;                 \
        const char *weights = t.weights;                                                           \
        const int32_t *read = t.reads;                                                             \
        for (int v = 0; v < vectors; v++) {                                                        \
            const int32_t *bias = (const int32_t *)t.bias + v * 8;                                 \
            __m256i sum[M];                                                                        \
            _Pragma("GCC unroll 6") for (int i = 0; i < M; i++) sum[i] =                           \
                _mm256_loadu_si256((const __m256i *)bias);                                         \
            for (int r = 0; r < reads; r++, read++) {                                              \
                const char *input = t.input + (int64_t)*read * 4;                                  \
                __m256i index[UNITS];                                                              \
                _Pragma("GCC unroll 4") for (int u = 0; u < UNITS; u++, weights += kIndices)       \
                    index[u] = _mm256_load_si256((const __m256i *)weights);                        \
                for (int s = 0; s < t.step_count; s++, weights += UNITS * DOT::kUnitBytes) {       \
                    const char *start = input + (int64_t)t.steps[s] * 4;                           \
                    _Pragma("GCC unroll 6") for (int i = 0; i < M; i++) {                          \
                        const __m256i line = _mm256_load_si256(                                    \
                            (const __m256i *)(start + (int64_t)t.input_px[i] * 4));                \
                        _Pragma("GCC unroll 4") for (int u = 0; u < UNITS; u++) sum[i] =           \
                            DOT::multiply_add(sum[i], _mm256_permutevar8x32_epi32(line, index[u]), \
                                              weights + u * DOT::kUnitBytes);                      \
                    }                                                                              \
                }                                                                                  \
            }                                                                                      \
            for (int i = 0; i < M; i++) finish_uint8(t, i, v, sum[i]);                             \
        }                                                                                          \
    }

FR_UINT8_TILE(FR_WITH_AVX_VNNI, vnni, Vnni)
FR_UINT8_TILE(FR_WITH_AVX2, widened, Widened)

#define FR_CHOOSE(NAME)                                                                          \
    template <int UNITS>                                                                         \
    TileFunction NAME##_choose(int pixels) {                                                     \
        static const TileFunction table[kMost] = {NAME##_tile<1, UNITS>, NAME##_tile<2, UNITS>,  \
                                                  NAME##_tile<3, UNITS>, NAME##_tile<4, UNITS>,  \
                                                  NAME##_tile<5, UNITS>, NAME##_tile<6, UNITS>}; \
        return pixels >= 1 && pixels <= kMost ? table[pixels - 1] : nullptr;                     \
    }                                                                                            \
    TileFunction NAME##_choose(int pixels, int units) {                                          \
        return units == 1   ? NAME##_choose<1>(pixels)                                           \
               : units == 2 ? NAME##_choose<2>(pixels)                                           \
               : units == 4 ? NAME##_choose<4>(pixels)                                           \
                            : nullptr;                                                           \
    }

FR_CHOOSE(float32)
FR_CHOOSE(vnni)
FR_CHOOSE(widened)

}  // namespace

TileFunction avx2_grouped_float32(int pixels, int units) { return float32_choose(pixels, units); }
TileFunction avx2_grouped_uint8(int pixels, int units) { return widened_choose(pixels, units); }
TileFunction avx_vnni_grouped_uint8(int pixels, int units) { return vnni_choose(pixels, units); }

}  // namespace fastres

#endif

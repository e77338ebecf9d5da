// Tiles of grouped convolutions for AVX-512: up to 14 pixels by 16 channels in as many registers,
// twice a panel.
//
// A vector's 16 output channels may be of several groups, each of which reads channels of its own.
// A pixel's line is loaded once, and permuted so that every lane has a unit of its group's
// (VPERMD, by indices that stay in registers); so nothing is multiplied by the zeros between
// groups, at the price of a permutation for each multiplication.

#include "sums_avx512.h"

#ifdef FR_X86

namespace fastres {
namespace {

// A float32 sum is one of sums of at most so many products: rounding grows with the length of a
// chain.
constexpr int kChain = 256;

template <class T, int M, int UNITS>
FR_ANY void tile(const Tile &t) {
    using Sum = typename T::Sum;
    alignas(64) typename T::Number sums[M][32];
    const int vectors = t.channels > 16 ? 2 : 1, reads = t.read_count / 2;
    const char *weights = t.weights;
    const int32_t *read = t.reads;
    for (int v = 0; v < vectors; v++) {
        const Sum bias = T::load((const typename T::Number *)t.bias + v * 16);
        Sum sum[M];
#pragma GCC unroll 16
        for (int i = 0; i < M; i++) {
            sum[i] = T::zero();
            T::store(sums[i] + v * 16, bias);
        }
        int products = 0;
        for (int r = 0; r < reads; r++, read++) {
            const char *input = t.input + (int64_t)*read * 4;
            __m512i index[UNITS];
#pragma GCC unroll 4
            for (int u = 0; u < UNITS; u++, weights += 64) index[u] = _mm512_load_si512(weights);
            for (int s = 0; s < t.step_count; s++) {
                const char *start = input + (int64_t)t.steps[s] * 4;
                __m512i unit[UNITS];
#pragma GCC unroll 4
                for (int u = 0; u < UNITS; u++, weights += 64) unit[u] = _mm512_load_si512(weights);
#pragma GCC unroll 16
                for (int i = 0; i < M; i++) {
                    const __m512i line = _mm512_load_si512(start + (int64_t)t.input_px[i] * 4);
#pragma GCC unroll 4
                    for (int u = 0; u < UNITS; u++)
                        sum[i] = T::multiply_add(sum[i], _mm512_permutexvar_epi32(index[u], line),
                                                 unit[u]);
                }
                products += UNITS;
                if (T::Format::kind != FR_FLOAT32 || products < kChain) continue;
                products = 0;
#pragma GCC unroll 16
                for (int i = 0; i < M; i++) {
                    T::store(sums[i] + v * 16, T::plus(T::load(sums[i] + v * 16), sum[i]));
                    sum[i] = T::zero();
                }
            }
        }
        // The bias comes last: were it first, every product would be rounded at its size.
#pragma GCC unroll 16
        for (int i = 0; i < M; i++)
            T::store(sums[i] + v * 16, T::plus(T::load(sums[i] + v * 16), sum[i]));
    }
    if (vectors == 1)
        for (int i = 0; i < M; i++) T::store(sums[i] + 16, T::zero());
    finish_sums<typename T::Format>(t, M, sums);
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

template <class T>
TileFunction choose(int pixels, int units) {
    return units == 1   ? choose<T, 1>(pixels)
           : units == 2 ? choose<T, 2>(pixels)
           : units == 4 ? choose<T, 4>(pixels)
                        : nullptr;
}

}  // namespace

TileFunction avx512_grouped_float32(int pixels, int units) {
    return choose<Float32Sums>(pixels, units);
}
TileFunction avx512_grouped_bfloat16(int pixels, int units) {
    return choose<Bfloat16Sums16>(pixels, units);
}
TileFunction avx512_vnni_grouped_uint8(int pixels, int units) {
    return choose<Uint8Sums>(pixels, units);
}

}  // namespace fastres

#endif

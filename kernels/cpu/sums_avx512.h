// How the forms for groups multiply and add with AVX-512, by dtype, and how their tiles end.

#ifndef FASTRES_SUMS_AVX512_H
#define FASTRES_SUMS_AVX512_H

#include "finish_avx512.h"
#include "finish_uint8_avx512.h"

#ifdef FR_X86

namespace fastres {

#define FR_ANY FR_WITH_AVX512_ANY

// Units times units on top of sums, 16 of each.
struct Float32Sums {
    using Format = Float32;
    using Number = float;
    using Sum = __m512;
    static FR_ANY FR_INLINE Sum zero() { return _mm512_setzero_ps(); }
    static FR_ANY FR_INLINE Sum plus(Sum a, Sum b) { return _mm512_add_ps(a, b); }
    static FR_ANY FR_INLINE Sum load(const Number *from) { return _mm512_loadu_ps(from); }
    static FR_ANY FR_INLINE void store(Number *to, Sum sum) { _mm512_store_ps(to, sum); }
    static FR_ANY FR_INLINE Sum multiply_add(Sum sum, __m512i x, __m512i weights) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(weights), sum);
    }
};

struct Bfloat16Sums16 : Float32Sums {
    using Format = Bfloat16;
    static FR_ANY FR_INLINE Sum multiply_add(Sum sum, __m512i x, __m512i weights) {
        return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)weights);
    }
};

struct Uint8Sums {
    struct Format {
        static constexpr int kind = FR_UINT8;
    };
    using Number = int32_t;
    using Sum = __m512i;
    static FR_ANY FR_INLINE Sum zero() { return _mm512_setzero_si512(); }
    static FR_ANY FR_INLINE Sum plus(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
    static FR_ANY FR_INLINE Sum load(const Number *from) { return _mm512_loadu_si512(from); }
    static FR_ANY FR_INLINE void store(Number *to, Sum sum) { _mm512_store_si512(to, sum); }
    static FR_ANY FR_INLINE Sum multiply_add(Sum sum, __m512i x, __m512i weights) {
        return _mm512_dpbusd_epi32(sum, x, weights);
    }
};

// As finish_each() of float32's.
template <class FORMAT>
FR_ANY __attribute__((noinline)) void finish_each(const Tile &t, int pixels,
                                                  const int32_t (*sums)[32]) {
    for (int i = 0; i < pixels; i++) finish_any_uint8(t, i, sums[i]);
}

template <class FORMAT>
FR_ANY FR_INLINE void finish_sums(const Tile &t, int pixels, const int32_t (*sums)[32]) {
    if (!is_plain_uint8(t)) return finish_each<FORMAT>(t, pixels, sums);
    for (int i = 0; i < pixels; i++) finish_one_uint8(t, i, sums[i]);
}

}  // namespace fastres

#endif
#endif

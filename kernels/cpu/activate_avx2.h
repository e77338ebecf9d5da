// A tile's activations for AVX2.

#ifndef FASTRES_ACTIVATE_AVX2_H
#define FASTRES_ACTIVATE_AVX2_H

#include "tile.h"

#ifdef FR_X86

FR_BEGIN_AVX2
#define FR_WIDEST 32
#include "functions.h"

namespace fastres {

// Of 8 of a pixel's numbers, from the panel's channel `lane`.
FR_INLINE __m256 activate(const Tile &t, const fr_function &f, int lane, __m256 x) {
    using V = Vectors<8>;
    if (f.kind == FR_NONE) return x;
    Function<V::Float> function{f.kind, f.values, {}};
    if (f.kind == FR_PRELU) function.slopes = (V::Float)_mm256_loadu_ps(t.slopes + lane);
    V::Float y = (V::Float)x;
    apply<V::Float, V::Int>(y, function);
    return (__m256)y;
}

}  // namespace fastres
FR_END

#endif
#endif

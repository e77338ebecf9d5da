// A tile's activations for AVX-512, and masks of the channels that there are.

#ifndef FASTRES_ACTIVATE_AVX512_H
#define FASTRES_ACTIVATE_AVX512_H

#include "tile.h"

#ifdef FR_X86

FR_BEGIN_AVX512
#define FR_WIDEST 64
#include "functions.h"

namespace fastres {

// Of 16 of a pixel's numbers, from the panel's channel `lane`.
FR_INLINE __m512 activate(const Tile &t, const fr_function &f, int lane, __m512 x) {
    using V = Vectors<16>;
    if (f.kind == FR_NONE) return x;
    Function<V::Float> function{f.kind, f.values, {}};
    if (f.kind == FR_PRELU) function.slopes = (V::Float)_mm512_loadu_ps(t.slopes + lane);
    V::Float y = (V::Float)x;
    apply<V::Float, V::Int>(y, function);
    return (__m512)y;
}

FR_INLINE __mmask16 lanes(int count) {
    return count >= 16  ? (__mmask16)0xffff
           : count <= 0 ? (__mmask16)0
                        : (__mmask16)((1u << count) - 1);
}

}  // namespace fastres
FR_END

#endif
#endif

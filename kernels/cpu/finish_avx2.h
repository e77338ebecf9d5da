// What becomes of a tile's float32 sums, for the tiles of AVX2.

#ifndef FASTRES_FINISH_AVX2_H
#define FASTRES_FINISH_AVX2_H

#include "activate_avx2.h"
#include "tile.h"

#ifdef FR_X86

namespace fastres {

// All bits set in the first `count` lanes of 8.
FR_WITH_AVX2 FR_INLINE __m256i lanes_of_8(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Where 8 of a panel's channels lie, from the pixel's address: `vector` counts eights.
FR_INLINE int64_t place(int vector, int64_t plane) {
    return (vector / 2) * plane + vector % 2 * 32;
}

// Everything that whole lines with no activation but a ReLU at the end do not need. `vectors`
// eights of channels per pixel, from the panel's `first`.
FR_WITH_AVX2 __attribute__((noinline)) inline void finish_any(const Tile &t, int pixels, int first,
                                                              int vectors, const float *sums) {
    for (int i = 0; i < pixels; i++) {
        for (int v = first; v < first + vectors; v++, sums += 8) {
            const __m256i present = lanes_of_8(t.channels - v * 8);
            __m256 x = activate(t, t.before, v * 8, _mm256_load_ps(sums));
            if (t.residual) {
                const char *from = t.residual + (int64_t)t.residual_px[i] * 4;
                x = _mm256_add_ps(
                    x, _mm256_load_ps((const float *)(from + place(v, t.residual_plane))));
            }
            // Lanes without a channel hold zero whatever the pixel holds: the next layer multiplies
            // them by zero, which infinity would not survive.
            x = _mm256_and_ps(activate(t, t.after, v * 8, x), _mm256_castsi256_ps(present));
            char *to = t.output + (int64_t)t.output_px[i] * 4;
            if (t.rows)
                _mm256_maskstore_ps((float *)to + v * 8, present, x);
            else
                _mm256_store_ps((float *)(to + place(v, t.output_plane)), x);
        }
    }
}

}  // namespace fastres

#endif
#endif

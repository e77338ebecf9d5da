// What becomes of a tile's sums, for the tiles of AArch64: activations, the residual, the store.
//
// As finish_avx512.h and finish_uint8_avx512.h, in the compiler's own vectors of 16 numbers.

#ifndef FASTRES_FINISH_NEON_H
#define FASTRES_FINISH_NEON_H

#include <algorithm>
#include <cstring>
#include <limits>

#include "numbers.h"
#include "plan.h"
#include "target.h"
#include "tile.h"

#ifdef FR_ARM

#include "functions.h"
#include "rows.h"

namespace fastres {
namespace {

// What a kernel multiplies, and what its lines hold.
struct Float32 {
    static constexpr int kind = FR_FLOAT32, stored = FR_FLOAT32;
};
struct Bfloat16 {
    static constexpr int kind = FR_BFLOAT16, stored = FR_BFLOAT16;
};
struct Bfloat16Sums {
    static constexpr int kind = FR_BFLOAT16, stored = FR_FLOAT32;
};

// Of a pixel's channels, for Winograd's transforms.
using Sixteen = Lanes;

FR_INLINE Sixteen any_sixteen(const float *from) {
    Sixteen x;
    std::memcpy(&x, from, 64);
    return x;
}

// 16 channels: all of a line of float32, or half of one of bfloat16.
template <class T>
FR_INLINE Sixteen load_sixteen(const char *from) {
    Sixteen x;
    load<T::stored>(from, 0, x);
    return x;
}

template <class T>
FR_INLINE void store_sixteen(char *to, Sixteen x) {
    store<T::stored>(to, 0, x);
}

// Every function there is, once for all tiles.
__attribute__((noinline)) void activate_any(const Tile &t, const fr_function &f, int lane,
                                            Lanes &x) {
    Function<Lanes> function{f.kind, f.values, {}};
    if (f.kind == FR_PRELU) std::memcpy(&function.slopes, t.slopes + lane, 64);
    apply<Lanes, Integers>(x, function);
}

// Of 16 of a pixel's numbers, from the panel's channel `lane`.
FR_INLINE void activate(const Tile &t, const fr_function &f, int lane, Lanes &x) {
    if (f.kind == FR_RELU)
        x = x < Lanes{} ? Lanes{} : x;
    else if (f.kind != FR_NONE)
        activate_any(t, f, lane, x);
}

// Where 16 of a panel's channels lie, from the pixel's address: in a line of their own, or in a
// half of one.
template <int STORED>
FR_INLINE int64_t line_of(int half, int64_t plane) {
    return STORED == FR_FLOAT32 ? half * plane : 0;
}

// A pixel's sums, bias included.
template <class T>
FR_INLINE void finish_pixel(const Tile &t, int i, const float *sums) {
    constexpr int kStored = T::stored;
    char *to = t.output + (int64_t)t.output_px[i] * 4;
    for (int half = 0; half < 2; half++) {
        const int present = t.channels - 16 * half;
        // Of bfloat16 both halves are one line, which the next layer reads whole.
        if (present <= 0 && (t.rows || kStored == FR_FLOAT32)) return;
        Lanes x, other;
        std::memcpy(&x, sums + 16 * half, 64);
        activate(t, t.before, 16 * half, x);
        if (t.residual) {
            const char *from = t.residual + (int64_t)t.residual_px[i] * 4;
            load<kStored>(from + line_of<kStored>(half, t.residual_plane), half, other);
            x += other;
        }
        activate(t, t.after, 16 * half, x);
        // Lanes without a channel hold zero whatever the pixel holds: the next layer multiplies
        // them by zero, which infinity would not survive.
        if (present < 16) {
            const Integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
            x = lane < present ? x : Lanes{};
        }
        if (t.rows)
            std::memcpy(to + 64 * half, &x, 4 * std::min(present, 16));
        else
            store<kStored>(to + line_of<kStored>(half, t.output_plane), half, x);
    }
}

// The same to uint8, or from it to rows of float32.
FR_INLINE void finish_pixel_uint8(const Tile &t, int i, const int32_t *sums) {
    char *to = t.output + (int64_t)t.output_px[i] * 4;
    for (int half = 0; half < 2; half++) {
        const int present = std::min(t.channels - 16 * half, 16);
        if (present <= 0) return;
        Integers q;
        Lanes multiplier;
        std::memcpy(&q, sums + 16 * half, 64);
        std::memcpy(&multiplier, t.multiplier + 16 * half, 64);
        Lanes x = __builtin_convertvector(q, Lanes) * multiplier;
        activate(t, t.before, 16 * half, x);
        if (t.residual) {
            const char *from = t.residual + (int64_t)t.residual_px[i] * 4;
            load_integers(from, half, t.residual_zero, q);
            x += __builtin_convertvector(q, Lanes) * t.residual_multiplier;
        }
        activate(t, t.after, 16 * half, x);
        if (t.rows) {
            std::memcpy(to + 64 * half, &x, 4 * present);
            continue;
        }
        quantize(x * t.output_multiplier, t.output_zero, q);
        char bytes[16];
        store_bytes(bytes, 0, q);
        std::memcpy(to + 16 * half, bytes, present);
    }
}

template <class T>
FR_INLINE void finish_sums(const Tile &t, int pixels, const float (*sums)[32]) {
    for (int i = 0; i < pixels; i++) finish_pixel<T>(t, i, sums[i]);
}

template <class T>
FR_INLINE void finish_sums(const Tile &t, int pixels, const int32_t (*sums)[32]) {
    for (int i = 0; i < pixels; i++) finish_pixel_uint8(t, i, sums[i]);
}

// Of single pixels, for Winograd's.
template <class T>
struct Ending {
    explicit Ending(const Tile &) {}
    FR_INLINE void finish(const Tile &t, const Sixteen &low, const Sixteen &high) const {
        float sums[32];
        std::memcpy(sums, &low, 64);
        std::memcpy(sums + 16, &high, 64);
        finish_pixel<T>(t, 0, sums);
    }
};

}  // namespace
}  // namespace fastres

#endif
#endif

// Convolution tiles for AArch64: up to 6 pixels by 16 channels in 24 registers, twice a panel.
//
// A register is four units of 4 bytes whatever they hold: a float32, a pair of bfloat16 or four
// uint8. So all three are the same loops, with another instruction that multiplies and adds units:
// FMLA, BFDOT, and USDOT or SUDOT (Arm Architecture Reference Manual for A-profile, "BFDOT",
// "USDOT"), which read units as AVX-512's VDPBF16PS and VPDPBUSD do, and so weights in the same
// order. Compiled and run in an emulator, never timed.

#include "finish_neon.h"

#ifdef FR_ARM

namespace fastres {

FR_BEGIN_NEON_ANY

namespace {

constexpr int kMost = 6;     // pixels
constexpr int kChain = 256;  // units of a float32 sum that is a part of another

using Units = uint8x16_t;

FR_INLINE Units units_at(const char *from) { return vld1q_u8((const uint8_t *)from); }

// Units times units on top of sums, four of each; one of the four times all, or each times its own.
// `kTaps`: numbers of a unit, and how many taps' numbers interleave() brings side by side.
struct Float32Sums {
    using Format = Float32;
    using Number = float;
    using Sum = float32x4_t;
    static constexpr int kTaps = 1;
    static FR_INLINE Sum zero() { return vdupq_n_f32(0); }
    static FR_INLINE Sum load(const float *from) { return vld1q_f32(from); }
    static FR_INLINE void store(float *to, Sum sum) { vst1q_f32(to, sum); }
    static FR_INLINE Sum plus(Sum a, Sum b) { return vaddq_f32(a, b); }
    template <int LANE>
    static FR_INLINE Sum multiply_add(Sum sum, Units weights, Units x) {
        // vfmaq_laneq_f32(), of which GCC 12 makes a copy of the lane in a register, and runs out
        // of registers.
        __asm__("fmla %0.4s, %1.4s, %2.s[%3]" : "+w"(sum) : "w"(weights), "w"(x), "i"(LANE));
        return sum;
    }
    static FR_INLINE Sum multiply_add(Sum sum, Units weights, Units x) {
        return vfmaq_f32(sum, vreinterpretq_f32_u8(weights), vreinterpretq_f32_u8(x));
    }
    static FR_INLINE void interleave(Units (&)[1]) {}
};

template <class FORMAT>
struct PairSums : Float32Sums {
    using Format = FORMAT;
    static constexpr int kTaps = 2;
    template <int LANE>
    static FR_INLINE Sum multiply_add(Sum sum, Units weights, Units x) {
        return vbfdotq_laneq_f32(sum, vreinterpretq_bf16_u8(weights), vreinterpretq_bf16_u8(x),
                                 LANE);
    }
    static FR_INLINE Sum multiply_add(Sum sum, Units weights, Units x) {
        return vbfdotq_f32(sum, vreinterpretq_bf16_u8(weights), vreinterpretq_bf16_u8(x));
    }
    static FR_INLINE void interleave(Units (&taps)[2]) {
        const uint16x8_t a = vreinterpretq_u16_u8(taps[0]), b = vreinterpretq_u16_u8(taps[1]);
        taps[0] = vreinterpretq_u8_u16(vzip1q_u16(a, b));
        taps[1] = vreinterpretq_u8_u16(vzip2q_u16(a, b));
    }
};

struct Uint8Sums {
    struct Format {
        static constexpr int kind = FR_UINT8;
    };
    using Number = int32_t;
    using Sum = int32x4_t;
    static constexpr int kTaps = 4;
    static FR_INLINE Sum zero() { return vdupq_n_s32(0); }
    static FR_INLINE Sum load(const int32_t *from) { return vld1q_s32(from); }
    static FR_INLINE void store(int32_t *to, Sum sum) { vst1q_s32(to, sum); }
    static FR_INLINE Sum plus(Sum a, Sum b) { return vaddq_s32(a, b); }
    template <int LANE>
    static FR_INLINE Sum multiply_add(Sum sum, Units weights, Units x) {
        return vsudotq_laneq_s32(sum, vreinterpretq_s8_u8(weights), x, LANE);
    }
    static FR_INLINE Sum multiply_add(Sum sum, Units weights, Units x) {
        return vusdotq_s32(sum, x, vreinterpretq_s8_u8(weights));
    }
    static FR_INLINE void interleave(Units (&taps)[4]) {
        const auto wide = [](Units units) { return vreinterpretq_u16_u8(units); };
        const uint16x8_t ab = wide(vzip1q_u8(taps[0], taps[1]));
        const uint16x8_t cd = wide(vzip1q_u8(taps[2], taps[3]));
        const uint16x8_t ef = wide(vzip2q_u8(taps[0], taps[1]));
        const uint16x8_t gh = wide(vzip2q_u8(taps[2], taps[3]));
        taps[0] = vreinterpretq_u8_u16(vzip1q_u16(ab, cd));
        taps[1] = vreinterpretq_u8_u16(vzip2q_u16(ab, cd));
        taps[2] = vreinterpretq_u8_u16(vzip1q_u16(ef, gh));
        taps[3] = vreinterpretq_u8_u16(vzip2q_u16(ef, gh));
    }
};

// The sums of M pixels by 4 * V of a panel's channels from `first` on, in registers, on top of what
// lies in memory.
template <class T, int M, int V>
struct Sums {
    using Number = typename T::Number;
    typename T::Sum sum[M][V];
    Number (&aside)[M][32];
    int first, products = 0;  // of a sum

    // The bias comes first in memory, where it is added last: were it the first in a register,
    // every product would be rounded at its size.
    FR_INLINE Sums(Number (&memory)[M][32], const void *bias, int channel)
        : aside(memory), first(channel) {
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                sum[i][v] = T::zero();
                const Number *from = (const Number *)bias + first + 4 * v;
                T::store(aside[i] + first + 4 * v, T::load(from));
            }
        }
    }

    // Rounding grows with the length of a chain.
    FR_INLINE void added(int units) {
        products += units;
        if (products >= kChain) put_aside();
    }

    FR_INLINE void put_aside() {
        products = 0;
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                Number *at = aside[i] + first + 4 * v;
                T::store(at, T::plus(T::load(at), sum[i][v]));
                sum[i][v] = T::zero();
            }
        }
    }
};

// One of the pixels' four units by its weights.
template <class T, int M, int LANE>
FR_INLINE void unit(typename T::Sum (&sum)[M][4], const Units (&pixels)[M], const char *weights) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        const Units w = units_at(weights + 16 * v);
#pragma GCC unroll 6
        for (int i = 0; i < M; i++)
            sum[i][v] = T::template multiply_add<LANE>(sum[i][v], w, pixels[i]);
    }
}

template <class T, int M>
void panels_tile(const Tile &t) {
    typename T::Number memory[M][32];
    for (int first = 0; first < std::min(t.channels, 32); first += 16) {
        Sums<T, M, 4> sums(memory, t.bias, first);
        const char *weights = t.weights + 4 * first;
        for (int s = 0; s < t.step_count; s++) {
            const char *at[M];
#pragma GCC unroll 6
            for (int i = 0; i < M; i++) at[i] = t.input + ((int64_t)t.steps[s] + t.input_px[i]) * 4;
            int u = 0;
            for (; u + 4 <= t.step_units; u += 4, weights += 4 * 128) {
                Units pixels[M];
#pragma GCC unroll 6
                for (int i = 0; i < M; i++) pixels[i] = units_at(at[i] + 4 * u);
                unit<T, M, 0>(sums.sum, pixels, weights);
                unit<T, M, 1>(sums.sum, pixels, weights + 128);
                unit<T, M, 2>(sums.sum, pixels, weights + 256);
                unit<T, M, 3>(sums.sum, pixels, weights + 384);
            }
            for (; u < t.step_units; u++, weights += 128) {
                Units pixels[M];
#pragma GCC unroll 6
                for (int i = 0; i < M; i++)
                    pixels[i] = vreinterpretq_u8_u32(vld1q_dup_u32((const uint32_t *)at[i] + u));
                unit<T, M, 0>(sums.sum, pixels, weights);
            }
            sums.added(t.step_units);
        }
        sums.put_aside();
    }
    finish_sums<typename T::Format>(t, M, memory);
}

// Each channel by itself. The numbers of as many taps as a unit has are brought side by side; then
// four channels are a register, in the order of the weights: see pack_groups.py.
template <class T, int M>
void depthwise_tile(const Tile &t) {
    constexpr int kTaps = T::kTaps, kPieces = 4 / kTaps;  // registers of 16 channels of a tap
    typename T::Number memory[M][32];
    for (int half = 0; half < (t.channels > 16 ? 2 : 1); half++) {
        Sums<T, M, 4> sums(memory, t.bias, 16 * half);
        const char *input = t.input + half * (kTaps == 1 ? t.input_plane : 64 / kTaps);
        const char *weights = t.weights;
        for (int s = 0; s < t.step_count; s++, weights += 128) {
            const char *tap[kTaps];
#pragma GCC unroll 4
            for (int k = 0; k < kTaps; k++) tap[k] = input + (int64_t)t.steps[kTaps * s + k] * 4;
#pragma GCC unroll 4
            for (int piece = 0; piece < kPieces; piece++) {
                Units w[kTaps];
#pragma GCC unroll 4
                for (int k = 0; k < kTaps; k++)
                    w[k] = units_at(weights + (2 * kPieces * k + kPieces * half + piece) * 16);
#pragma GCC unroll 6
                for (int i = 0; i < M; i++) {
                    const int64_t at = (int64_t)t.input_px[i] * 4 + 16 * piece;
                    Units x[kTaps];
#pragma GCC unroll 4
                    for (int k = 0; k < kTaps; k++) x[k] = units_at(tap[k] + at);
                    T::interleave(x);
#pragma GCC unroll 4
                    for (int k = 0; k < kTaps; k++) {
                        auto &sum = sums.sum[i][kTaps * piece + k];
                        sum = T::multiply_add(sum, w[k], x[k]);
                    }
                }
            }
            sums.added(1);
        }
        sums.put_aside();
    }
    finish_sums<typename T::Format>(t, M, memory);
}

// Four output channels at a time, each from the units of its group: TBL brings them into its lane.
template <class T, int M, int UNITS>
void grouped_tile(const Tile &t) {
    constexpr int kVectors = 8;  // of a panel
    typename T::Number memory[M][32];
    const int vectors = (t.channels + 3) / 4, reads = t.read_count / kVectors;
    const char *weights = t.weights;
    const int32_t *read = t.reads;
    for (int v = 0; v < vectors; v++) {
        Sums<T, M, 1> sums(memory, t.bias, 4 * v);
        for (int r = 0; r < reads; r++, read++) {
            const char *input = t.input + (int64_t)*read * 4;
            Units index[UNITS];
#pragma GCC unroll 4
            for (int u = 0; u < UNITS; u++, weights += 16) {  // of units; TBL's is of bytes
                const uint32x4_t unit = vreinterpretq_u32_u8(units_at(weights));
                index[u] = vreinterpretq_u8_u32(
                    vmlaq_u32(vdupq_n_u32(0x03020100), unit, vdupq_n_u32(0x04040404)));
            }
            for (int s = 0; s < t.step_count; s++, weights += UNITS * 16) {
                const char *start = input + (int64_t)t.steps[s] * 4;
#pragma GCC unroll 6
                for (int i = 0; i < M; i++) {
                    const Units piece = units_at(start + (int64_t)t.input_px[i] * 4);
#pragma GCC unroll 4
                    for (int u = 0; u < UNITS; u++)
                        sums.sum[i][0] = T::multiply_add(sums.sum[i][0], units_at(weights + 16 * u),
                                                         vqtbl1q_u8(piece, index[u]));
                }
                sums.added(UNITS);
            }
        }
        sums.put_aside();
    }
    for (int i = 0; i < M; i++)  // what is no channel's is looked at with the others of its line
        for (int k = 4 * vectors; k < 32; k++) memory[i][k] = 0;
    finish_sums<typename T::Format>(t, M, memory);
}

#define FR_BY_PIXELS(...)                                                                      \
    static const TileFunction table[kMost] = {__VA_ARGS__(1), __VA_ARGS__(2), __VA_ARGS__(3),  \
                                              __VA_ARGS__(4), __VA_ARGS__(5), __VA_ARGS__(6)}; \
    return pixels >= 1 && pixels <= kMost ? table[pixels - 1] : nullptr

template <class T, int UNITS>
TileFunction grouped(int pixels) {
#define FR_TILE(M) grouped_tile<T, M, UNITS>
    FR_BY_PIXELS(FR_TILE);
#undef FR_TILE
}

template <class T>
TileFunction grouped(int pixels, int units) {
    return units == 1   ? grouped<T, 1>(pixels)
           : units == 2 ? grouped<T, 2>(pixels)
           : units == 4 ? grouped<T, 4>(pixels)
                        : nullptr;
}

template <class T>
TileFunction depthwise(int pixels) {
#define FR_TILE(M) depthwise_tile<T, M>
    FR_BY_PIXELS(FR_TILE);
#undef FR_TILE
}

template <class T>
TileFunction panels(int pixels) {
#define FR_TILE(M) panels_tile<T, M>
    FR_BY_PIXELS(FR_TILE);
#undef FR_TILE
}

template <class T>
TileFunction of_form(int form, int pixels, int units) {
    return form == FR_DEPTHWISE ? depthwise<T>(pixels)
           : form == FR_GROUPED ? grouped<T>(pixels, units)
                                : panels<T>(pixels);
}

}  // namespace

FR_END

TileFunction neon_tile(int dtype, int form, int pixels, int step_units) {
    switch (dtype) {
        case FR_FLOAT32: return of_form<Float32Sums>(form, pixels, step_units);
        case FR_BFLOAT16: return of_form<PairSums<Bfloat16>>(form, pixels, step_units);
        default: return of_form<Uint8Sums>(form, pixels, step_units);
    }
}

TileFunction neon_bfloat16_sums(int pixels) { return panels<PairSums<Bfloat16Sums>>(pixels); }

}  // namespace fastres

#endif

// Numbers in memory: float32, bfloat16 as its upper half, and quantised ones.

#ifndef FASTRES_NUMBERS_H
#define FASTRES_NUMBERS_H

#include <cstdint>
#include <cstring>

#include "native.h"

namespace fastres {

template <int DTYPE>
struct Number;

template <>
struct Number<FR_FLOAT32> {
    using Stored = float;
    static constexpr int kLanes = 16;
    static inline __attribute__((always_inline)) float load(const Stored *p) { return *p; }
    static inline __attribute__((always_inline)) void store(Stored *p, float x) { *p = x; }
};

template <>
struct Number<FR_BFLOAT16> {
    using Stored = uint16_t;
    static constexpr int kLanes = 32;
    static inline __attribute__((always_inline)) float load(const Stored *p) {
        const uint32_t bits = (uint32_t)*p << 16;
        float x;
        std::memcpy(&x, &bits, 4);
        return x;
    }
    // Half to even; a NaN stays one, though its payload may be cut off.
    static inline __attribute__((always_inline)) void store(Stored *p, float x) {
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        const uint32_t nan = (bits >> 16) | 0x40;
        *p = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
    }
};

// A quantised number as it is.
template <>
struct Number<FR_UINT8> {
    using Stored = uint8_t;
    static constexpr int kLanes = 64;
    static inline __attribute__((always_inline)) float load(const Stored *p) { return (float)*p; }
    static inline __attribute__((always_inline)) void store(Stored *p, float x) { *p = (uint8_t)x; }
};

}  // namespace fastres
#endif

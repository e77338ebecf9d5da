// Element-wise functions of vectors of float32, in the compiler's own vectors: whatever includes
// this says before for which instruction set (FR_BEGIN_...), x86's with FR_WIDEST, the bytes of a
// register, and for how many numbers.
//
// Their errors are within a few units in the last place of the function's own value. The
// coefficients were fitted for the least largest error in the range that each polynomial is used
// in; what it is stands beside them. tests/native/test_tiles.py holds every function against
// float64 on numbers of all sizes.

#ifndef FASTRES_FUNCTIONS_H
#define FASTRES_FUNCTIONS_H

#include <cstdint>
#include <cstring>

#include "native.h"
#include "target.h"

namespace fastres {
namespace {

template <int LANES>
struct Vectors {
    typedef float Float __attribute__((vector_size(4 * LANES)));
    typedef int32_t Int __attribute__((vector_size(4 * LANES)));
};

// x * factor + summand, rounded once: half as many instructions as twice, and less lost where a sum
// cancels.
template <class V>
FR_INLINE void multiply_add(V &x, const V &factor, const V &summand) {
#if defined(FR_X86)
    if constexpr (sizeof(V) == 64 && FR_WIDEST == 64) {
        x = (V)_mm512_fmadd_ps((__m512)x, (__m512)factor, (__m512)summand);
        return;
    }
    constexpr int kParts = sizeof(V) / 32;
    __m256 a[kParts], b[kParts], c[kParts];
#else
    constexpr int kParts = sizeof(V) / 16;
    float32x4_t a[kParts], b[kParts], c[kParts];
#endif
    std::memcpy(a, &x, sizeof(V));
    std::memcpy(b, &factor, sizeof(V));
    std::memcpy(c, &summand, sizeof(V));
    for (int i = 0; i < kParts; i++)
#if defined(FR_X86)
        a[i] = _mm256_fmadd_ps(a[i], b[i], c[i]);
#else
        a[i] = vfmaq_f32(c[i], a[i], b[i]);
#endif
    std::memcpy(&x, a, sizeof(V));
}

template <class V>
FR_INLINE void multiply_add(V &x, const V &factor, float summand) {
    multiply_add(x, factor, V{} + summand);
}

// What an activation is: fr_activation, its two numbers, and for FR_PRELU a slope per lane.
template <class V>
struct Function {
    int kind;
    const float *values;
    V slopes;
};

// e^x as 2^n * (1 + p), the power of two as two factors, since 2^-149 and 2^128 are none alone.
template <class V, class I>
FR_INLINE void split_power(const V &x, V &p, V &first, V &second) {
    const V least = V{} - 104.0f, most = V{} + 89.0f;  // beyond are 0 and infinity
    V y = x < least ? least : x;
    y = y > most ? most : y;
    const float even = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to whole numbers
    const V n = (y * 1.44269504f + even) - even;
    // ln 2 in two parts, the first with so few bits that n times it is exact.
    V r = n;
    multiply_add(r, V{} - 1.42860682e-6f, y - n * 0.693145751953125f);
    // (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2, error 1.4e-9.
    V q = V{} + 1.9907702517e-4f;
    multiply_add(q, r, 1.3933732407e-3f);
    multiply_add(q, r, 8.3332862705e-3f);
    multiply_add(q, r, 4.1666463017e-2f);
    multiply_add(q, r, 1.6666667163e-1f);
    multiply_add(q, r, 0.5f);
    p = r * r;
    multiply_add(p, q, r);
    const I whole = __builtin_convertvector(n, I), half = whole >> 1;
    const I one = (half + 127) << 23, other = (whole - half + 127) << 23;
    std::memcpy(&first, &one, sizeof first);
    std::memcpy(&second, &other, sizeof second);
}

template <class V, class I>
FR_INLINE void power(V &x) {
    V p, first, second;
    split_power<V, I>(x, p, first, second);
    x = (p + 1.0f) * first * second;
}

// e^x - 1, which is exact near 0 as well.
template <class V, class I>
FR_INLINE void power_less_one(V &x) {
    V p, first, second;
    split_power<V, I>(x, p, first, second);
    const V whole = first * second;
    x = p * first * second + (whole - 1.0f);
}

template <class V, class I>
FR_INLINE void sigmoid(V &x) {
    V e = -x;
    power<V, I>(e);
    x = 1.0f / (1.0f + e);
}

template <class V, class I>
FR_INLINE void tangent(V &x) {
    const V zero = {};
    const V size = x < zero ? -x : x, square = x * x;
    // tanh(x) / x in x^2 for |x| <= 0.625, relative error 4e-9; beyond by its definition.
    V q = V{} - 5.6599848904e-3f;
    multiply_add(q, square, 2.0590983331e-2f);
    multiply_add(q, square, -5.3721066564e-2f);
    multiply_add(q, square, 1.3331127167e-1f);
    multiply_add(q, square, -3.3333259821e-1f);
    V near = x * square;
    multiply_add(near, q, x);
    V e = size * -2.0f;
    power<V, I>(e);
    const V rest = (1.0f - e) / (1.0f + e);
    const V far = x < zero ? -rest : rest;
    x = size < (V{} + 0.625f) ? near : far;
}

template <class V, class I>
FR_INLINE void error_function(V &x) {
    const V zero = {}, one = zero + 1.0f;
    const V size = x < zero ? -x : x, square = x * x;
    // erf(x) / x in x^2 for |x| <= 1, relative error 1.2e-9.
    V q = V{} + 7.8538578236e-5f;
    multiply_add(q, square, -8.0101925414e-4f);
    multiply_add(q, square, 5.1883277483e-3f);
    multiply_add(q, square, -2.6853810996e-2f);
    multiply_add(q, square, 1.1283585429e-1f);
    multiply_add(q, square, -3.7612625957e-1f);
    multiply_add(q, square, 1.1283791065f);
    const V near = x * q;
    // -ln(1 - erf(x)) for 0.9 <= x <= 4, error 1.2e-8; beyond, 1 - erf(x) is below 2^-25.
    const V four = zero + 4.0f;
    const V y = size > four ? four : size;
    V e = V{} - 1.6024897604e-6f;
    multiply_add(e, y, 4.5354576287e-5f);
    multiply_add(e, y, -5.9071514988e-4f);
    multiply_add(e, y, 4.7302814201e-3f);
    multiply_add(e, y, -2.6335537434e-2f);
    multiply_add(e, y, 1.0992518067e-1f);
    multiply_add(e, y, 6.3199532032e-1f);
    multiply_add(e, y, 1.1301314831f);
    multiply_add(e, y, -2.9427418485e-4f);
    e = -e;
    power<V, I>(e);
    const V rest = 1.0f - e;
    const V far = x < zero ? -rest : rest;
    const V beyond = x != x ? x : far;
    x = size < one ? near : beyond;
}

// A comparison with NaN is false, so that what is kept by default keeps NaN.
template <class V, class I>
FR_INLINE void apply(V &x, const Function<V> &f) {
    const V zero = {}, six = zero + 6.0f;
    switch (f.kind) {
        case FR_RELU: x = x < zero ? zero : x; break;
        case FR_RELU6:
            x = x < zero ? zero : x;
            x = x > six ? six : x;
            break;
        case FR_HARDSWISH:
        case FR_HARDSIGMOID: {
            V gate = x + 3.0f;
            gate = gate < zero ? zero : gate;
            gate = gate > six ? six : gate;
            x = f.kind == FR_HARDSWISH ? x * gate / six : gate / six;
            break;
        }
        case FR_SILU: {
            V e = -x;
            power<V, I>(e);
            x = x / (1.0f + e);
            break;
        }
        case FR_SIGMOID: sigmoid<V, I>(x); break;
        case FR_GELU: {
            V y = x * 0.70710678f;
            error_function<V, I>(y);
            x = x * 0.5f * (1.0f + y);
            break;
        }
        case FR_GELU_TANH: {
            V y = 0.79788456f * (x + 0.044715f * x * x * x);
            tangent<V, I>(y);
            x = x * 0.5f * (1.0f + y);
            break;
        }
        case FR_TANH: tangent<V, I>(x); break;
        case FR_LEAKY_RELU: x = x < zero ? x * f.values[0] : x; break;
        case FR_PRELU: x = x < zero ? x * f.slopes : x; break;
        case FR_ELU: {
            V e = x > zero ? zero : x;
            power_less_one<V, I>(e);
            x = (x > zero ? x : e * f.values[0]) * f.values[1];
            break;
        }
        case FR_MISH: {
            // tanh(ln(1 + e^x)) = n / (n + 2) with n = e^x (e^x + 2).
            const V twenty = zero + 20.0f;
            V e = x > twenty ? twenty : x;
            power<V, I>(e);
            const V n = e * (e + 2.0f);
            x = x * (n / (n + 2.0f));
            break;
        }
        case FR_CLAMP: {
            const V low = zero + f.values[0], high = zero + f.values[1];
            x = x < low ? low : x;
            x = x > high ? high : x;
            break;
        }
        default: break;
    }
}

}  // namespace
}  // namespace fastres

#endif

// Convolution tiles for AMX: 32 pixels by 32 channels in a 2x2 block of accumulator tiles.
//
// A step is two tiles of pixels (16 rows of `step_units` units each, at a constant stride), two of
// weights (`step_units` rows of 16 channels) and four products, one for each pair. Their operands
// are loaded as late as the first product that needs them, so that each product waits for one load
// only. (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, "Programming with
// Intel AMX".)

#include "finish_avx512.h"
#include "finish_uint8_avx512.h"

#ifdef FR_X86

namespace fastres {
namespace {

// The registers: 0 and 1 hold the sums of the first 16 pixels, 2 and 3 of the others, each for
// channels 0 to 15 and 16 to 31; 4 and 5 the pixels, 6 and 7 the weights. Intrinsics want them as
// literals.
constexpr int kSums = 4, kPixels = 2, kWeights = 2;

// What LDTILECFG reads.
struct alignas(64) Configuration {
    uint8_t palette = 1;
    uint8_t first_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

FR_WITH_AMX FR_INLINE void finish(const Tile &t, const float *sums, int pixels) {
    if (is_plain(t)) {
        const __m512 floor = floor_of(t);
        for (int i = 0; i < pixels; i++, sums += 32)
            if (t.output_px[i] != kNoPixel)
                finish_plain<Bfloat16>(t, i, floor, _mm512_load_ps(sums),
                                       _mm512_load_ps(sums + 16));
    } else {
        for (int i = 0; i < pixels; i++, sums += 32)
            if (t.output_px[i] != kNoPixel)
                finish_any<Bfloat16>(t, i, _mm512_load_ps(sums), _mm512_load_ps(sums + 16));
    }
}

FR_WITH_AMX FR_INLINE void finish(const Tile &t, const int32_t *sums, int pixels) {
    const bool plain = is_plain_uint8(t);
    for (int i = 0; i < pixels; i++, sums += 32) {
        if (t.output_px[i] == kNoPixel) continue;
        if (plain)
            finish_one_uint8(t, i, sums);
        else
            finish_any_uint8(t, i, sums);
    }
}

// The type of the sums, and the instruction that multiplies.
struct Bfloat16Dot {
    using Sum = float;
    static FR_WITH_AMX FR_INLINE void first_low() { _tile_dpbf16ps(0, 4, 6); }
    static FR_WITH_AMX FR_INLINE void first_high() { _tile_dpbf16ps(1, 4, 7); }
    static FR_WITH_AMX FR_INLINE void second_low() { _tile_dpbf16ps(2, 5, 6); }
    static FR_WITH_AMX FR_INLINE void second_high() { _tile_dpbf16ps(3, 5, 7); }
};

struct Uint8Dot {
    using Sum = int32_t;
    static FR_WITH_AMX FR_INLINE void first_low() { _tile_dpbusd(0, 4, 6); }
    static FR_WITH_AMX FR_INLINE void first_high() { _tile_dpbusd(1, 4, 7); }
    static FR_WITH_AMX FR_INLINE void second_low() { _tile_dpbusd(2, 5, 6); }
    static FR_WITH_AMX FR_INLINE void second_high() { _tile_dpbusd(3, 5, 7); }
};

// The sums of `HALVES` times 16 pixels in registers 0 to 3.
template <class Dot, int HALVES>
FR_WITH_AMX FR_INLINE void multiply(const Tile &t) {
    const char *bias = (const char *)t.bias;
    _tile_loadd(0, bias, 0);
    _tile_loadd(1, bias + 64, 0);
    if (HALVES == 2) {
        _tile_loadd(2, bias, 0);
        _tile_loadd(3, bias + 64, 0);
    }
    const char *first = t.input + (int64_t)t.input_px[0] * 4;
    const char *second = t.input + (int64_t)t.input_px[16] * 4;
    const char *weights = t.weights;
    const char *ahead = t.ahead;
    const int64_t row_step = t.row_step, step_bytes = (int64_t)t.step_units * 128;
    const int32_t *const end = t.steps + t.step_count;
    const int ahead_lines = t.ahead_lines;
    for (const int32_t *step = t.steps; step < end; step++, weights += step_bytes) {
        const int64_t offset = (int64_t)*step * 4;
        for (int line = 0; line < ahead_lines; line++, ahead += 64)
            _mm_prefetch(ahead, _MM_HINT_T1);
        _tile_loadd(6, weights, 128);
        _tile_loadd(4, first + offset, row_step);
        Dot::first_low();
        _tile_loadd(7, weights + 64, 128);
        Dot::first_high();
        if (HALVES == 2) {
            _tile_loadd(5, second + offset, row_step);
            Dot::second_low();
            Dot::second_high();
        }
    }
}

template <class Dot>
FR_WITH_AMX void tile(const Tile &t) {
    alignas(64) typename Dot::Sum sums[32][32];
    const __m512i none = _mm512_set1_epi32(kNoPixel);
    const bool both = _mm512_cmpneq_epi32_mask(_mm512_loadu_si512(t.output_px + 16), none) != 0;
    if (both) {
        multiply<Dot, 2>(t);
        _tile_stored(2, sums[16], sizeof sums[0]);
        _tile_stored(3, sums[16] + 16, sizeof sums[0]);
    } else {
        multiply<Dot, 1>(t);
    }
    _tile_stored(0, sums[0], sizeof sums[0]);
    _tile_stored(1, sums[0] + 16, sizeof sums[0]);
    finish(t, sums[0], both ? 32 : 16);
}

}  // namespace

TileFunction amx_bfloat16() { return tile<Bfloat16Dot>; }
TileFunction amx_uint8() { return tile<Uint8Dot>; }

FR_WITH_AMX void amx_configure(int step_units) {
    Configuration c;
    int i = 0;
    for (; i < kSums; i++) c.rows[i] = 16, c.row_bytes[i] = 64;
    for (; i < kSums + kPixels; i++) c.rows[i] = 16, c.row_bytes[i] = (uint16_t)(step_units * 4);
    for (; i < kSums + kPixels + kWeights; i++)
        c.rows[i] = (uint8_t)step_units, c.row_bytes[i] = 64;
    // GCC's intrinsic does not say that it reads all of it.
    __asm__ volatile("" : : "r"(&c) : "memory");
    _tile_loadconfig(&c);
}

FR_WITH_AMX void amx_release() { _tile_release(); }

}  // namespace fastres

#endif

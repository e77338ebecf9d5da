// How many multiply-adds the processor can do at all: what layers' times are held against.
//
// Each thread multiplies and adds in registers only. What it adds in one half of a turn it takes
// away in the other, so that sums stay finite and bits go on changing however long it takes.

#include "native.h"
#include "target.h"

#ifdef FR_X86
#include <algorithm>
#include <chrono>
#include <iterator>
#include <new>
#include <vector>

#include "team.h"
#include "tile.h"

namespace fastres {
namespace {

constexpr int kSlices = 32;  // of the time; the median of their speeds counts

// Random numbers between 0.5 and 1.5 in magnitude, as float32 and bfloat16, and their negatives; of
// integers any bytes, and factors between -127 and 127.
struct Operands {
    alignas(64) float x[16], minus_x[16], y[16];
    alignas(64) uint16_t pixels[512], minus_pixels[512], weights[2][512];
    alignas(64) uint8_t bytes[1024];
    alignas(64) int8_t factors[1024], minus_factors[1024];
    alignas(64) float sums[4 * 256];

    explicit Operands(uint32_t seed) {
        const auto number = [&seed] {
            seed = seed * 1664525u + 1013904223u;  // Numerical Recipes' generator
            const float size = 0.5f + (float)(seed >> 9) / (float)(1 << 23);
            return seed >> 8 & 1 ? size : -size;
        };
        const auto upper_half = [](float value) {
            uint32_t bits;
            __builtin_memcpy(&bits, &value, 4);
            return (uint16_t)(bits >> 16);
        };
        for (int i = 0; i < 16; i++) {
            x[i] = number();
            minus_x[i] = -x[i];
            y[i] = number();
        }
        for (int i = 0; i < 512; i++) {
            pixels[i] = upper_half(number());
            minus_pixels[i] = pixels[i] ^ 0x8000;
            weights[0][i] = upper_half(number());
            weights[1][i] = upper_half(number());
        }
        for (int i = 0; i < 1024; i++) {
            seed = seed * 1664525u + 1013904223u;
            bytes[i] = (uint8_t)(seed >> 24);
            factors[i] = (int8_t)((int)(seed >> 16 & 0xff) % 255 - 127);
            minus_factors[i] = (int8_t)-factors[i];
        }
        for (float &sum : sums) sum = number();
    }
};

// As many sums as hide an instruction's latency and leave registers for the operands.
constexpr int kSums256 = 12, kSums512 = 16;
constexpr int kTurnsAvx2 = 2048, kTurnsAvx512 = 1024, kTurnsAmx = 256;  // some 10 microseconds

FR_WITH_AVX2 void turns_avx2(Operands &o) {
    const __m256 x = _mm256_load_ps(o.x), minus_x = _mm256_load_ps(o.minus_x);
    const __m256 y = _mm256_load_ps(o.y);
    __m256 sums[kSums256];
#pragma GCC unroll 16
    for (int i = 0; i < kSums256; i++) sums[i] = _mm256_load_ps(o.sums + 8 * i);
    for (int turn = 0; turn < kTurnsAvx2; turn++) {
#pragma GCC unroll 16
        for (int i = 0; i < kSums256; i++) sums[i] = _mm256_fmadd_ps(x, y, sums[i]);
#pragma GCC unroll 16
        for (int i = 0; i < kSums256; i++) sums[i] = _mm256_fmadd_ps(minus_x, y, sums[i]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSums256; i++) _mm256_store_ps(o.sums + 8 * i, sums[i]);
}

FR_WITH_AVX512 void turns_avx512(Operands &o) {
    const __m512 x = _mm512_load_ps(o.x), minus_x = _mm512_load_ps(o.minus_x);
    const __m512 y = _mm512_load_ps(o.y);
    __m512 sums[kSums512];
#pragma GCC unroll 16
    for (int i = 0; i < kSums512; i++) sums[i] = _mm512_load_ps(o.sums + 16 * i);
    for (int turn = 0; turn < kTurnsAvx512; turn++) {
#pragma GCC unroll 16
        for (int i = 0; i < kSums512; i++) sums[i] = _mm512_fmadd_ps(x, y, sums[i]);
#pragma GCC unroll 16
        for (int i = 0; i < kSums512; i++) sums[i] = _mm512_fmadd_ps(minus_x, y, sums[i]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSums512; i++) _mm512_store_ps(o.sums + 16 * i, sums[i]);
}

FR_WITH_AVX512_BF16 void turns_avx512_bfloat16(Operands &o) {
    const __m512bh x = (__m512bh)_mm512_load_si512(o.pixels);
    const __m512bh minus_x = (__m512bh)_mm512_load_si512(o.minus_pixels);
    const __m512bh y = (__m512bh)_mm512_load_si512(o.weights[0]);
    __m512 sums[kSums512];
#pragma GCC unroll 16
    for (int i = 0; i < kSums512; i++) sums[i] = _mm512_load_ps(o.sums + 16 * i);
    for (int turn = 0; turn < kTurnsAvx512; turn++) {
#pragma GCC unroll 16
        for (int i = 0; i < kSums512; i++) sums[i] = _mm512_dpbf16_ps(sums[i], x, y);
#pragma GCC unroll 16
        for (int i = 0; i < kSums512; i++) sums[i] = _mm512_dpbf16_ps(sums[i], minus_x, y);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSums512; i++) _mm512_store_ps(o.sums + 16 * i, sums[i]);
}

// The loops over integers, whose sums may be any bits: by registers of 256 or 512 bits.
#define FR_INTEGER_TURNS(TARGET, NAME, VECTOR, LOAD, STORE, SUMS, TURNS, STEP)  \
    TARGET void NAME(Operands &o) {                                             \
        const VECTOR x = LOAD((const VECTOR *)o.bytes);                         \
        const VECTOR y = LOAD((const VECTOR *)o.factors);                       \
        const VECTOR minus_y = LOAD((const VECTOR *)o.minus_factors);           \
        VECTOR sums[SUMS];                                                      \
        _Pragma("GCC unroll 16") for (int i = 0; i < (SUMS); i++) sums[i] =     \
            LOAD((const VECTOR *)o.sums + i);                                   \
        for (int turn = 0; turn < (TURNS); turn++) {                            \
            _Pragma("GCC unroll 16") for (int i = 0; i < (SUMS); i++) sums[i] = \
                STEP(sums[i], x, y);                                            \
            _Pragma("GCC unroll 16") for (int i = 0; i < (SUMS); i++) sums[i] = \
                STEP(sums[i], x, minus_y);                                      \
        }                                                                       \
        _Pragma("GCC unroll 16") for (int i = 0; i < (SUMS); i++)               \
            STORE((VECTOR *)o.sums + i, sums[i]);                               \
    }
#define FR_MULTIPLY_ADD_INT16(sum, x, y) _mm256_add_epi32(sum, _mm256_madd_epi16(x, y))

FR_INTEGER_TURNS(FR_WITH_AVX2, turns_avx2_int16, __m256i, _mm256_load_si256, _mm256_store_si256,
                 kSums256, kTurnsAvx2, FR_MULTIPLY_ADD_INT16)
FR_INTEGER_TURNS(FR_WITH_AVX_VNNI, turns_avx_vnni, __m256i, _mm256_load_si256, _mm256_store_si256,
                 kSums256, kTurnsAvx2, _mm256_dpbusd_avx_epi32)
FR_INTEGER_TURNS(FR_WITH_AVX512_VNNI, turns_avx512_vnni, __m512i, _mm512_load_si512,
                 _mm512_store_si512, kSums512, kTurnsAvx512, _mm512_dpbusd_epi32)

// The tiles of a convolution: four of sums, two of pixels, two of weights.
FR_WITH_AMX void turns_amx(Operands &o) {
    _tile_loadd(0, o.sums, 64);
    _tile_loadd(1, o.sums + 256, 64);
    _tile_loadd(2, o.sums + 512, 64);
    _tile_loadd(3, o.sums + 768, 64);
    _tile_loadd(4, o.pixels, 64);
    _tile_loadd(5, o.minus_pixels, 64);
    _tile_loadd(6, o.weights[0], 64);
    _tile_loadd(7, o.weights[1], 64);
    for (int turn = 0; turn < kTurnsAmx; turn++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_dpbf16ps(0, 5, 6);
        _tile_dpbf16ps(1, 5, 7);
        _tile_dpbf16ps(2, 4, 6);
        _tile_dpbf16ps(3, 4, 7);
    }
    _tile_stored(0, o.sums, 64);
    _tile_stored(1, o.sums + 256, 64);
    _tile_stored(2, o.sums + 512, 64);
    _tile_stored(3, o.sums + 768, 64);
}

FR_WITH_AMX void turns_amx_uint8(Operands &o) {
    _tile_loadd(0, o.sums, 64);
    _tile_loadd(1, o.sums + 256, 64);
    _tile_loadd(2, o.sums + 512, 64);
    _tile_loadd(3, o.sums + 768, 64);
    _tile_loadd(4, o.bytes, 64);
    _tile_loadd(5, o.pixels, 64);
    _tile_loadd(6, o.factors, 64);
    _tile_loadd(7, o.minus_factors, 64);
    for (int turn = 0; turn < kTurnsAmx; turn++) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
        _tile_dpbusd(0, 4, 7);
        _tile_dpbusd(1, 4, 6);
        _tile_dpbusd(2, 5, 7);
        _tile_dpbusd(3, 5, 6);
    }
    _tile_stored(0, o.sums, 64);
    _tile_stored(1, o.sums + 256, 64);
    _tile_stored(2, o.sums + 512, 64);
    _tile_stored(3, o.sums + 768, 64);
}

struct Loop {
    int isa, dtype;
    void (*turns)(Operands &);
    double multiply_adds;  // of one call
};

const Loop kLoops[] = {
    {FR_AVX2, FR_FLOAT32, turns_avx2, 2.0 * kSums256 * 8 * kTurnsAvx2},
    {FR_AVX512, FR_FLOAT32, turns_avx512, 2.0 * kSums512 * 16 * kTurnsAvx512},
    {FR_AVX512_BF16, FR_BFLOAT16, turns_avx512_bfloat16, 2.0 * kSums512 * 32 * kTurnsAvx512},
    {FR_AMX_BF16, FR_BFLOAT16, turns_amx, 8.0 * 16 * 16 * 32 * kTurnsAmx},
    {FR_AVX2, FR_UINT8, turns_avx2_int16, 2.0 * kSums256 * 16 * kTurnsAvx2},
    {FR_AVX_VNNI, FR_UINT8, turns_avx_vnni, 2.0 * kSums256 * 32 * kTurnsAvx2},
    {FR_AVX512_VNNI, FR_UINT8, turns_avx512_vnni, 2.0 * kSums512 * 64 * kTurnsAvx512},
    {FR_AMX_INT8, FR_UINT8, turns_amx_uint8, 8.0 * 16 * 16 * 64 * kTurnsAmx},
};

double seconds() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

struct Job {
    Loop loop;
    bool uses_tiles;
    double slice;  // seconds
    Barrier barrier;
    std::vector<double> speeds;  // by thread
};

void run_job(void *context, int thread, int count) {
    Job &job = *(Job *)context;
    Operands operands((uint32_t)thread + 1);
    if (job.uses_tiles) amx_configure(16);
    job.barrier.wait(count);
    double speeds[kSlices];
    for (double &speed : speeds) {
        const double began = seconds();
        double done = 0, took;
        do {
            job.loop.turns(operands);
            done += job.loop.multiply_adds;
            took = seconds() - began;
        } while (took < job.slice);
        speed = done / took;
    }
    if (job.uses_tiles) amx_release();
    std::nth_element(speeds, speeds + kSlices / 2, speeds + kSlices);
    job.speeds[(size_t)thread] = speeds[kSlices / 2];
}

}  // namespace
}  // namespace fastres

extern "C" double fr_peak(int32_t isa, int32_t dtype, int32_t threads, int32_t milliseconds) {
    using namespace fastres;
    const Loop *loop = std::find_if(std::begin(kLoops), std::end(kLoops), [&](const Loop &each) {
        return each.isa == isa && each.dtype == dtype;
    });
    if (loop == std::end(kLoops) || !(fr_isas() >> isa & 1) || threads < 1) return 0;
    try {
        Job job;
        job.loop = *loop;
        job.uses_tiles = isa == FR_AMX_BF16 || isa == FR_AMX_INT8;
        job.slice = milliseconds / 1e3 / kSlices;
        job.speeds.assign((size_t)threads, 0);
        if (threads == 1) {
            run_job(&job, 0, 1);
        } else if (const auto team = Team::of(threads)) {
            team->run(run_job, &job);
        }
        double sum = 0;
        for (const double speed : job.speeds) sum += speed;
        return sum;
    } catch (const std::bad_alloc &) {
        return 0;
    }
}

#else

extern "C" double fr_peak(int32_t, int32_t, int32_t, int32_t) { return 0; }

#endif

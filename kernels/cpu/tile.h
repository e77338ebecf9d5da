// A tile: a few output pixels of one panel, and the function that computes it.

#ifndef FASTRES_TILE_H
#define FASTRES_TILE_H

#include "native.h"
#include "target.h"

namespace fastres {

struct Tile {
    const char *input;  // the tensor's first pixel of the sub-batch, with the panel's own offset
    const int32_t *input_px, *output_px, *residual_px;  // of the tile's first pixel
    int64_t row_step;  // AMX: bytes from a pixel's input to the next one's
    const int32_t *steps;
    const int32_t *reads;  // FR_GROUPED: the panel's, by vector
    int32_t read_count;    // of them
    int64_t input_plane;   // FR_DEPTHWISE: bytes from 16 channels to the next 16 (float32)
    const char *weights;
    const void *bias;                      // float32, or to uint8 int32
    const float *multiplier;               // to uint8: see fr_op
    char *output;                          // the panel's first line, or row, of the first pixel
    const char *residual;                  // likewise, or null
    int64_t output_plane, residual_plane;  // bytes from 16 channels to the next 16 (float32)
    const char *ahead;                     // what to read ahead, or null
    int32_t ahead_lines;                   // lines of it per step
    const int32_t *next_px;                // input_px of the tile behind, to read ahead, or null
    int32_t step_count, step_units;
    int32_t channels;  // of the panel that there are: 1 to 32
    fr_function before, after;
    const float *slopes;  // of the panel's channels, for FR_PRELU
    int32_t rows;
    float residual_multiplier, output_multiplier;
    int32_t residual_zero, output_zero;
};

using TileFunction = void (*)(const Tile &);

constexpr int kNoPixel = -1;  // in output_px of AMX
constexpr int kMostPixels = 14;
constexpr float kBeyondUint8 = 1024.0f;  // with any zero point

// By number of pixels, 1 to kMostPixels; null beyond what an instruction set's registers hold.
TileFunction avx512_float32(int pixels, int step_units);
TileFunction avx512_bfloat16(int pixels, int step_units);
// Products of bfloat16 whose sums are stored as float32, for Winograd's matrix products.
TileFunction avx512_bfloat16_sums(int pixels);
TileFunction avx2_float32(int pixels, int step_units);
// Sums of products of uint8 and int8. With AVX2 alone the weights are int16; see pack.py.
TileFunction avx512_vnni_uint8(int pixels, int step_units);
TileFunction avx_vnni_uint8(int pixels, int step_units);
TileFunction avx2_uint8(int pixels, int step_units);

// The other forms. Pixels to kMostPixels and six; of uint8 and FR_DEPTHWISE to 12 and two. Units:
// one, two or four.
TileFunction avx512_depthwise_float32(int pixels);
TileFunction avx512_depthwise_bfloat16(int pixels);
TileFunction avx512_vnni_depthwise_uint8(int pixels);
TileFunction avx2_depthwise_float32(int pixels);
TileFunction avx2_depthwise_uint8(int pixels);
TileFunction avx_vnni_depthwise_uint8(int pixels);
TileFunction avx512_grouped_float32(int pixels, int step_units);
TileFunction avx512_grouped_bfloat16(int pixels, int step_units);
TileFunction avx512_vnni_grouped_uint8(int pixels, int step_units);
TileFunction avx2_grouped_float32(int pixels, int step_units);
TileFunction avx2_grouped_uint8(int pixels, int step_units);
TileFunction avx_vnni_grouped_uint8(int pixels, int step_units);

// 32 pixels. The thread's tile registers must be configured for the units of a step, 16 at most.
TileFunction amx_bfloat16();
TileFunction amx_uint8();
void amx_configure(int step_units);
void amx_release();

// AArch64: a tile of any fr_dtype and fr_form, of 1 to 6 pixels.
TileFunction neon_tile(int dtype, int form, int pixels, int step_units);
TileFunction neon_bfloat16_sums(int pixels);  // as avx512_bfloat16_sums()

}  // namespace fastres
#endif

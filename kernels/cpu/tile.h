// A tile: a few output pixels of one panel, and the function that computes it.

#ifndef FASTRES_TILE_H
#define FASTRES_TILE_H

#include "native.h"

namespace fastres {

struct Tile {
    const char *input;  // the tensor's first pixel of the sub-batch, with the panel's own offset
    const int32_t *input_px, *output_px, *residual_px;  // of the tile's first pixel
    int64_t row_step;  // AMX: bytes from a pixel's input to the next one's
    const int32_t *steps;
    const char *weights;
    const float *bias;
    char *output;                          // the panel's first line, or row, of the first pixel
    const char *residual;                  // likewise, or null
    int64_t output_plane, residual_plane;  // bytes from 16 channels to the next 16 (float32)
    const char *ahead;                     // what to read ahead, or null
    int32_t ahead_lines;                   // lines of it per step
    const int32_t *next_px;                // input_px of the tile behind, to read ahead, or null
    int32_t step_count, step_units;
    int32_t channels;  // of the panel that there are: 1 to 32
    int32_t before, after;
    int32_t rows;
};

using TileFunction = void (*)(const Tile &);

constexpr int kNoPixel = -1;  // in output_px of AMX
constexpr int kMostPixels = 14;

// By number of pixels, 1 to kMostPixels; null beyond what an instruction set's registers hold.
TileFunction avx512_float32(int pixels, int step_units);
TileFunction avx512_bfloat16(int pixels, int step_units);
// Products of bfloat16 whose sums are stored as float32, for Winograd's matrix products.
TileFunction avx512_bfloat16_sums(int pixels);
TileFunction avx2_float32(int pixels, int step_units);

// 32 pixels. The thread's tile registers must be configured for the units of a step, 16 at most.
TileFunction amx_bfloat16();
void amx_configure(int step_units);
void amx_release();

}  // namespace fastres
#endif

// A convolution as chunks: some tiles of pixels by some panels of channels.

#include "plan.h"
#include "target.h"

#ifdef FR_X86

#include <algorithm>

namespace fastres {
namespace {

struct Tiling {
    int64_t pixels, tiles, groups, panel_chunks;
};

Tiling tiling(const Work &work) {
    const fr_op &op = *work.op;
    Tiling t;
    t.pixels = (int64_t)work.images * op.pixels;
    t.tiles = (t.pixels + op.tile - 1) / op.tile;
    t.groups = (t.tiles + op.group - 1) / op.group;
    t.panel_chunks = (op.panels + op.chunk_panels - 1) / op.chunk_panels;
    return t;
}

TileFunction function_for(const fr_op &op, int pixels) {
    if (op.isa == FR_AMX_BF16) return amx_bfloat16();
    if (op.dtype == FR_BFLOAT16) return avx512_bfloat16(pixels, op.step_units);
    if (op.isa == FR_AVX2) return avx2_float32(pixels, op.step_units);
    return avx512_float32(pixels, op.step_units);
}

// What goes out without an export is looked at here.
void look_at_rows(const Work &work, int64_t begin, int64_t end, int first_panel, int end_panel) {
    const fr_op &op = *work.op;
    const int channels = std::min(end_panel * 32, op.output.channels);
    bool ordinary = true;
    for (int64_t i = begin; i < end; i++) {
        if (op.output_px[i] < 0) continue;  // a row of a tile without a pixel
        const float *row = (const float *)(work.at(op.output) + (int64_t)op.output_px[i] * 4);
        for (int k = first_panel * 32; k < channels; k++) ordinary &= is_ordinary(row[k]);
    }
    if (!ordinary) work.data->unusual->store(true, std::memory_order_relaxed);
}

}  // namespace

int64_t convolution_chunks(const Work &work) {
    const Tiling t = tiling(work);
    return t.groups * t.panel_chunks;
}

void convolution_chunk(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const Tiling t = tiling(work);
    const int64_t group = chunk / t.panel_chunks;
    const int first_panel = (int)(chunk % t.panel_chunks) * op.chunk_panels;
    const int end_panel = std::min(first_panel + op.chunk_panels, op.panels);
    const int64_t first = group * op.group, end = std::min<int64_t>(first + op.group, t.tiles);
    const char *input = work.at(op.input);
    char *output = work.at(op.output);
    const char *residual = op.has_residual ? work.at(op.residual) : nullptr;
    const int blocks = op.dtype == FR_BFLOAT16 ? 1 : 2;  // lines of a panel's pixel
    const int panel_lines = op.step_units * 2;           // of weights, per step

    // Tiles are as even as can be: 49 pixels are 13 + 12 + 12 + 12, not 14 + 14 + 14 + 7.
    const auto begin_of = [&](int64_t tile) { return tile * t.pixels / t.tiles; };
    const int smaller = (int)(t.pixels / t.tiles);
    const TileFunction functions[2] = {function_for(op, smaller),
                                       smaller < op.tile ? function_for(op, smaller + 1) : nullptr};
    Tile tile;
    tile.row_step = op.row_step;
    tile.steps = op.steps;
    tile.step_count = op.step_count;
    tile.step_units = op.step_units;
    tile.output_plane = op.output.plane;
    tile.residual_plane = op.residual.plane;
    tile.before = op.before;
    tile.after = op.after;
    tile.rows = op.rows;
    if (op.isa == FR_AMX_BF16) amx_configure(op.step_units);
    for (int panel = first_panel; panel < end_panel; panel++) {
        const char *weights = (const char *)op.weights + panel * op.panel_bytes;
        const char *ahead = nullptr;
        if (op.prefetch) {
            if (panel + 1 < op.panels)
                ahead = weights + op.panel_bytes;
            else if (work.next && work.next->kind == FR_CONVOLUTION)
                ahead = (const char *)work.next->weights;
        }
        const int ahead_lines = ahead ? (int)((panel_lines + end - first - 1) / (end - first)) : 0;
        tile.weights = weights;
        tile.bias = op.bias + panel * 32;
        tile.input = input + (op.panel_input ? (int64_t)op.panel_input[panel] * 4 : 0);
        tile.channels = std::min(32, op.output.channels - panel * 32);
        tile.ahead_lines = ahead_lines;
        if (op.rows) {
            tile.output = output + panel * 32 * (int64_t)sizeof(float);
        } else {
            tile.output = output + panel * blocks * op.output.plane;
        }
        tile.residual = residual ? residual + panel * blocks * op.residual.plane : nullptr;
        for (int64_t i = first; i < end; i++) {
            const int64_t begin = begin_of(i);
            const int pixels = (int)(begin_of(i + 1) - begin);
            tile.input_px = op.input_px + begin;
            tile.output_px = op.output_px + begin;
            tile.residual_px = residual ? op.residual_px + begin : nullptr;
            tile.ahead = ahead;
            // The tile behind comes next in this group, or with the last panel in the next one.
            const bool comes = i + 1 < end ? panel == first_panel : panel + 1 == end_panel;
            const bool exists = i + 1 < t.tiles && begin + 2 * pixels <= t.pixels;
            tile.next_px = op.read_ahead && comes && exists ? tile.input_px + pixels : nullptr;
            functions[pixels - smaller](tile);
            if (ahead) ahead += (int64_t)ahead_lines * op.step_count * 64;
        }
    }
    if (op.isa == FR_AMX_BF16) amx_release();
    if (op.rows) look_at_rows(work, begin_of(first), begin_of(end), first_panel, end_panel);
}

}  // namespace fastres

#endif

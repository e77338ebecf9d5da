// A convolution as chunks: some tiles of pixels by some panels of channels.

#include "plan.h"
#include "target.h"

#ifdef FR_KERNELS

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

#ifdef FR_X86

bool uses_tile_registers(const fr_op &op) { return op.isa == FR_AMX_BF16 || op.isa == FR_AMX_INT8; }

TileFunction depthwise_for(const fr_op &op, int pixels) {
    switch (op.isa) {
        case FR_AVX512_VNNI: return avx512_vnni_depthwise_uint8(pixels);
        case FR_AVX512_BF16: return avx512_depthwise_bfloat16(pixels);
        case FR_AVX512: return avx512_depthwise_float32(pixels);
        case FR_AVX_VNNI: return avx_vnni_depthwise_uint8(pixels);
        default:
            return op.dtype == FR_UINT8 ? avx2_depthwise_uint8(pixels)
                                        : avx2_depthwise_float32(pixels);
    }
}

TileFunction grouped_for(const fr_op &op, int pixels) {
    switch (op.isa) {
        case FR_AVX512_VNNI: return avx512_vnni_grouped_uint8(pixels, op.step_units);
        case FR_AVX512_BF16: return avx512_grouped_bfloat16(pixels, op.step_units);
        case FR_AVX512: return avx512_grouped_float32(pixels, op.step_units);
        case FR_AVX_VNNI: return avx_vnni_grouped_uint8(pixels, op.step_units);
        default:
            return op.dtype == FR_UINT8 ? avx2_grouped_uint8(pixels, op.step_units)
                                        : avx2_grouped_float32(pixels, op.step_units);
    }
}

TileFunction function_for(const fr_op &op, int pixels) {
    if (op.form == FR_DEPTHWISE) return depthwise_for(op, pixels);
    if (op.form == FR_GROUPED) return grouped_for(op, pixels);
    if (op.dtype == FR_UINT8) {
        switch (op.isa) {
            case FR_AMX_INT8: return amx_uint8();
            case FR_AVX512_VNNI: return avx512_vnni_uint8(pixels, op.step_units);
            case FR_AVX_VNNI: return avx_vnni_uint8(pixels, op.step_units);
            default: return avx2_uint8(pixels, op.step_units);
        }
    }
    if (op.isa == FR_AMX_BF16) return amx_bfloat16();
    if (op.dtype == FR_BFLOAT16) return avx512_bfloat16(pixels, op.step_units);
    if (op.isa == FR_AVX2) return avx2_float32(pixels, op.step_units);
    return avx512_float32(pixels, op.step_units);
}

// What tiles need of the thread, before them and behind them.
void prepare(const fr_op &op) {
    if (uses_tile_registers(op)) amx_configure(op.step_units);
}

void clean_up(const fr_op &op) {
    if (uses_tile_registers(op)) amx_release();
}

#else

TileFunction function_for(const fr_op &op, int pixels) {
    return neon_tile(op.dtype, op.form, pixels, op.step_units);
}

void prepare(const fr_op &) {}
void clean_up(const fr_op &) {}

#endif

// Bytes from a tensor's first channel to a panel's.
int64_t to_panel(const fr_op &op, const fr_tensor &tensor, int panel) {
    switch (op.dtype) {
        case FR_FLOAT32: return 2 * panel * tensor.plane;
        case FR_BFLOAT16: return panel * tensor.plane;
        default: return panel / 2 * tensor.plane + panel % 2 * 32;
    }
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
    const int panel_lines = (int)(op.panel_bytes / op.step_count / 64);  // of weights, per step

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
    tile.read_count = op.reads;
    tile.input_plane = op.input.plane;
    tile.output_plane = op.output.plane;
    tile.residual_plane = op.residual.plane;
    tile.before = op.before;
    tile.after = op.after;
    tile.rows = op.rows;
    tile.residual_multiplier = op.residual_multiplier;
    tile.output_multiplier = op.output_multiplier;
    tile.residual_zero = op.residual_zero;
    tile.output_zero = op.output_zero;
    prepare(op);
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
        tile.bias = (const char *)op.bias + panel * 128;
        tile.slopes = op.slopes ? op.slopes + panel * 32 : nullptr;
        tile.multiplier = op.multiplier ? op.multiplier + panel * 32 : nullptr;
        const bool has_own_input = op.panel_input && !op.reads;
        tile.input = input + (has_own_input ? (int64_t)op.panel_input[panel] * 4 : 0);
        tile.reads = op.reads ? op.panel_input + (int64_t)panel * op.reads : nullptr;
        tile.channels = std::min(32, op.output.channels - panel * 32);
        tile.ahead_lines = ahead_lines;
        if (op.rows) {
            tile.output = output + panel * 32 * (int64_t)sizeof(float);
        } else {
            tile.output = output + to_panel(op, op.output, panel);
        }
        tile.residual = residual ? residual + to_panel(op, op.residual, panel) : nullptr;
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
    clean_up(op);
    if (op.rows) look_at_rows(work, begin_of(first), begin_of(end), first_panel, end_panel);
}

}  // namespace fastres

#endif

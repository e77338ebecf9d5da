// Whether the ops of a plan stay inside its arena, by their own numbers. Kernels check nothing.

#include <algorithm>
#include <limits>

#include "plan.h"

namespace fastres {
namespace {

constexpr int64_t kLine = 64;

// Bytes from a tensor's first pixel: from the lowest that is touched to behind the highest.
struct Reach {
    int64_t low, high;
};

// The smallest and largest number of a table; numbers equal to `except` do not count.
Reach extremes(const int32_t *table, int64_t count, int64_t except) {
    Reach found{std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()};
    for (int64_t i = 0; i < count; i++) {
        if (table[i] == except) continue;
        found.low = std::min<int64_t>(found.low, table[i]);
        found.high = std::max<int64_t>(found.high, table[i]);
    }
    return found.low > found.high ? Reach{0, 0} : found;
}

// Of the pixels of one image; a table has those of several, each an image further. Every `stride`th
// counts.
Reach pixels_of(const int32_t *table, const fr_op &op, const fr_tensor &tensor, int stride) {
    Reach found{std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()};
    for (int64_t image = 0; image < op.images; image++)
        for (int64_t pixel = 0; pixel < op.pixels; pixel += stride) {
            const int64_t at = table[image * op.pixels + pixel];
            if (at == kNoPixel) continue;
            found.low = std::min(found.low, at - image * (tensor.image / 4));
            found.high = std::max(found.high, at - image * (tensor.image / 4));
        }
    return found.low > found.high ? Reach{0, 0} : Reach{4 * found.low, 4 * found.high};
}

int64_t blocks(const fr_tensor &tensor, int32_t dtype) {
    const int64_t lanes = dtype == FR_FLOAT32 ? 16 : dtype == FR_BFLOAT16 ? 32 : 64;
    return tensor.pixel == kLine ? (tensor.channels + lanes - 1) / lanes : 1;
}

bool holds(const fr_tensor &tensor, const fr_op &op, int images, Reach reach, int64_t arena_bytes) {
    if (tensor.space != FR_ARENA) return true;
    const int64_t count = tensor.whole ? images : op.images;
    return tensor.image >= 0 && tensor.offset + reach.low >= 0 &&
           tensor.offset + (count - 1) * tensor.image + reach.high <= arena_bytes;
}

// All pixels inside the border.
Reach inside(const fr_tensor &tensor, int32_t dtype) {
    return {0, (blocks(tensor, dtype) - 1) * tensor.plane + (tensor.height - 1) * tensor.row +
                   tensor.width * tensor.pixel};
}

Reach written(const int32_t *table, const fr_op &op, const fr_tensor &tensor) {
    Reach found = pixels_of(table, op, tensor, 1);
    found.high += (blocks(tensor, op.dtype) - 1) * tensor.plane + kLine;
    return found;
}

// Bytes of a vector of output channels, and of what it reads of a line at once.
int64_t vector_bytes(int isa) {
    switch (isa) {
        case FR_AVX2:
        case FR_AVX_VNNI: return kLine / 2;
        case FR_NEON:
        case FR_NEON_BF16:
        case FR_NEON_I8MM: return kLine / 4;
        default: return kLine;
    }
}

int64_t taps_of_unit(const fr_op &op) {
    return op.dtype == FR_FLOAT32 ? 1 : op.dtype == FR_BFLOAT16 ? 2 : 4;
}

// Bytes behind where a step begins to read.
int64_t read_at_once(const fr_op &op) {
    switch (op.form) {
        case FR_PANELS: return 4 * (int64_t)op.step_units;
        case FR_GROUPED: return vector_bytes(op.isa);
        default:
            if (op.dtype == FR_UINT8) return kLine / 2;
            if (op.dtype == FR_BFLOAT16) return kLine;
            // The last panel lies furthest behind, and may have one line of channels or two.
            return kLine + (op.output.channels > (op.panels - 1) * 32 + 16 ? op.input.plane : 0);
    }
}

Reach read_by_convolution(const fr_op &op) {
    const bool runs = op.row_step != 0;
    const Reach pixels = pixels_of(op.input_px, op, op.input, runs ? 16 : 1);
    const int64_t none = std::numeric_limits<int64_t>::min();
    const int64_t taps = op.form == FR_DEPTHWISE ? taps_of_unit(op) : 1;
    const Reach steps = extremes(op.steps, op.step_count * taps, none);
    const int64_t inputs = op.panels * (int64_t)std::max(op.reads, 1);
    const Reach panel = op.panel_input ? extremes(op.panel_input, inputs, none) : Reach{0, 0};
    return {pixels.low + 4 * (steps.low + panel.low), pixels.high + 4 * (steps.high + panel.high) +
                                                          read_at_once(op) +
                                                          (runs ? 15 * (int64_t)op.row_step : 0)};
}

// F(2x2, 3x3) reads whole tiles and one pixel around them.
Reach read_by_winograd(const fr_op &op) {
    const fr_tensor &input = op.input;
    const int64_t rows = (input.height + 1) / 2 * 2, columns = (input.width + 1) / 2 * 2;
    return {-input.row - input.pixel, (blocks(input, op.dtype) - 1) * input.plane +
                                          rows * input.row + (columns + 1) * input.pixel};
}

// Copies are within a line of a channel block that the tensor has.
bool copies_stay_inside(const fr_op &op) {
    const auto fits = [&](const fr_tensor &tensor, int64_t offset, int64_t bytes) {
        const int64_t block = offset / tensor.plane;
        return offset >= 0 && bytes > 0 && block < blocks(tensor, op.dtype) &&
               offset % tensor.plane + bytes <= kLine;
    };
    for (int32_t i = 0; i < op.copy_count; i++) {
        const int32_t *copy = op.copies + 3 * (int64_t)i;
        if (!fits(op.input, copy[0], copy[2]) || !fits(op.output, copy[1], copy[2])) return false;
    }
    return true;
}

bool sources_stay_inside(const fr_op &op) {
    const int64_t none = std::numeric_limits<int64_t>::min();
    const Reach rows = extremes(op.source_rows, 2 * (int64_t)op.output.height, none);
    const Reach columns = extremes(op.source_columns, 2 * (int64_t)op.output.width, none);
    const int64_t least = op.row_shares ? 0 : -1;  // -1: zero
    return rows.low >= least && rows.high < op.input.height && columns.low >= least &&
           columns.high < op.input.width;
}

}  // namespace

bool stays_inside(const fr_op &op, int images, int64_t arena_bytes) {
    if (op.images < 1) return false;
    const bool multiplies = op.kind == FR_CONVOLUTION;
    const Reach read = multiplies               ? read_by_convolution(op)
                       : op.kind == FR_WINOGRAD ? read_by_winograd(op)
                                                : inside(op.input, op.dtype);
    if (!holds(op.input, op, images, read, arena_bytes)) return false;
    const Reach stored =
        multiplies && !op.rows
            ? written(op.output_px, op, op.output)
            : inside(op.output, op.kind == FR_CONVERT ? op.outside_dtype : op.dtype);
    if (!holds(op.output, op, images, stored, arena_bytes)) return false;
    if (op.has_residual) {
        const Reach added =
            multiplies ? written(op.residual_px, op, op.residual) : inside(op.residual, op.dtype);
        if (!holds(op.residual, op, images, added, arena_bytes)) return false;
    }
    if (op.has_factor && !holds(op.factor, op, images, inside(op.factor, op.dtype), arena_bytes))
        return false;
    if (op.kind == FR_GROUP_NORM && (op.groups < 1 || op.output.channels % op.groups != 0 ||
                                     op.scratch_bytes < 8 * ((op.output.channels + 15) / 16 * 16)))
        return false;
    if (op.kind == FR_GATHER && !copies_stay_inside(op)) return false;
    if (op.kind == FR_RESIZE && !sources_stay_inside(op)) return false;
    return op.scratch_offset >= 0 && op.scratch_bytes >= 0 &&
           op.scratch_offset <= arena_bytes - op.scratch_bytes;
}

}  // namespace fastres

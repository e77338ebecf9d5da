// Everything that is not a convolution, row by row: plain loops over the lanes of a line.

#include "functions.h"
#include "rows.h"
// What follows needs those.
#include "edge_rows.h"
#include "map_rows.h"
#include "moving_rows.h"
#include "norm_rows.h"
#include "pooling_rows.h"

namespace fastres {
namespace {

// The op's dtype, and the dtype of the caller's tensor.
#define FR_BY_DTYPE(ROW)                                        \
    switch (work.op->dtype) {                                   \
        case FR_FLOAT32: ROW<FR_FLOAT32>(work, chunk); break;   \
        case FR_BFLOAT16: ROW<FR_BFLOAT16>(work, chunk); break; \
        case FR_UINT8: ROW<FR_UINT8>(work, chunk); break;       \
    }
// What no quantised numbers have.
#define FR_BY_FLOATS(ROW)              \
    if (work.op->dtype == FR_BFLOAT16) \
        ROW<FR_BFLOAT16>(work, chunk); \
    else                               \
        ROW<FR_FLOAT32>(work, chunk)
#define FR_BY_BOTH(ROW)                                                                    \
    if (work.op->dtype == FR_BFLOAT16)                                                     \
        work.op->outside_dtype == FR_BFLOAT16 ? ROW<FR_BFLOAT16, FR_BFLOAT16>(work, chunk) \
                                              : ROW<FR_BFLOAT16, FR_FLOAT32>(work, chunk); \
    else                                                                                   \
        work.op->outside_dtype == FR_BFLOAT16 ? ROW<FR_FLOAT32, FR_BFLOAT16>(work, chunk)  \
                                              : ROW<FR_FLOAT32, FR_FLOAT32>(work, chunk)
// Quantised inside; outside too, or one of the others, with a function for that.
#define FR_BY_OUTSIDE(ROW, SAME)                                     \
    switch (work.op->outside_dtype) {                                \
        case FR_FLOAT32: ROW<FR_FLOAT32>(work, chunk); break;        \
        case FR_BFLOAT16: ROW<FR_BFLOAT16>(work, chunk); break;      \
        case FR_UINT8: SAME<FR_UINT8, FR_UINT8>(work, chunk); break; \
    }

void elementwise(const Work &work, int64_t chunk) {
    const bool is_quantized = work.op->dtype == FR_UINT8;
    switch (work.op->kind) {
        case FR_MAX_POOL: FR_BY_DTYPE(max_pool_row); break;
        case FR_MEAN: FR_BY_DTYPE(mean_block); break;
        case FR_AVG_POOL: FR_BY_FLOATS(avg_pool_row); break;
        case FR_MAP: FR_BY_DTYPE(map_row); break;
        case FR_CONVERT: convert_row(work, chunk); break;
        case FR_GROUP_NORM: FR_BY_FLOATS(group_norm); break;
        case FR_LAYER_NORM: FR_BY_FLOATS(layer_norm_row); break;
        case FR_GATHER: gather_row(work, chunk); break;
        case FR_RESIZE: FR_BY_FLOATS(resize_row); break;
        case FR_CHANNEL_CONVOLUTION: FR_BY_FLOATS(channel_convolution); break;
        case FR_IMPORT:
            if (is_quantized)
                FR_BY_OUTSIDE(quantize_row, import_row)
            else
                FR_BY_BOTH(import_row);
            break;
        case FR_EXPORT:
            if (is_quantized)
                FR_BY_OUTSIDE(dequantize_row, export_row)
            else
                FR_BY_BOTH(export_row);
            break;
    }
}

}  // namespace
}  // namespace fastres

// Everything that is not a convolution. Plain loops over the lanes of a line: the compiler makes vector
// code of them, once for each instruction set.

#include <algorithm>
#include <limits>

#include "numbers.h"
#include "plan.h"
#include "target.h"

#ifdef FR_X86

namespace fastres {
namespace {

int blocks(const fr_tensor &tensor, int dtype) {
    const int lanes = dtype == FR_BFLOAT16 ? 32 : 16;
    return (tensor.channels + lanes - 1) / lanes;
}

// A line's lanes that have a channel; the others are kept at zero.
template <int DTYPE>
FR_INLINE int lanes_of(const fr_tensor &tensor, int block) {
    return std::min<int>(Number<DTYPE>::kLanes, tensor.channels - block * Number<DTYPE>::kLanes);
}

FR_INLINE float activate(float x, int kind) {
    switch (kind) {
        case FR_RELU: return x < 0 ? 0 : x;  // NaN is not below 0
        case FR_RELU6: return x < 0 ? 0 : x > 6 ? 6 : x;
        case FR_HARDSWISH: {
            const float gate = x + 3;
            return x * (gate < 0 ? 0 : gate > 6 ? 6 : gate) / 6;
        }
        default: return x;
    }
}

// One row of one channel block of one image.
template <int DTYPE>
FR_INLINE void max_pool_row(const Work &work, int64_t chunk) {
    using N = Number<DTYPE>;
    using Stored = typename N::Stored;
    const fr_op &op = *work.op;
    const int height = op.output.height, count = blocks(op.output, DTYPE);
    const int row = (int)(chunk % height), block = (int)(chunk / height % count);
    const int64_t image = chunk / height / count;
    const char *from = work.at(op.input) + image * op.input.image + block * op.input.plane;
    char *to = work.at(op.output) + image * op.output.image + block * op.output.plane +
               row * op.output.row;
    for (int column = 0; column < op.output.width; column++, to += op.output.pixel) {
        float best[N::kLanes];
        for (int i = 0; i < N::kLanes; i++) best[i] = -std::numeric_limits<float>::infinity();
        for (int r = 0; r < op.kernel[0]; r++) {
            const int y = row * op.stride[0] - op.padding[0] + r * op.dilation[0];
            if (y < 0 || y >= op.input.height) continue;
            for (int s = 0; s < op.kernel[1]; s++) {
                const int x = column * op.stride[1] - op.padding[1] + s * op.dilation[1];
                if (x < 0 || x >= op.input.width) continue;
                const Stored *line = (const Stored *)(from + y * op.input.row + x * op.input.pixel);
                for (int i = 0; i < N::kLanes; i++) {
                    const float value = N::load(line + i);
                    best[i] = value > best[i] || value != value ? value : best[i];  // NaN wins
                }
            }
        }
        for (int i = 0; i < N::kLanes; i++) N::store((Stored *)to + i, best[i]);
    }
}

// One channel block of one image: the mean over its pixels.
template <int DTYPE>
FR_INLINE void mean_block(const Work &work, int64_t chunk) {
    using N = Number<DTYPE>;
    using Stored = typename N::Stored;
    const fr_op &op = *work.op;
    const int count = blocks(op.input, DTYPE);
    const int64_t image = chunk / count, block = chunk % count;
    const char *from = work.at(op.input) + image * op.input.image + block * op.input.plane;
    Stored *to = (Stored *)(work.at(op.output) + image * op.output.image + block * op.output.plane);
    float sum[N::kLanes] = {};
    for (int y = 0; y < op.input.height; y++) {
        float row[N::kLanes] = {};  // sums of sums lose less
        for (int x = 0; x < op.input.width; x++) {
            const Stored *line = (const Stored *)(from + y * op.input.row + x * op.input.pixel);
            for (int i = 0; i < N::kLanes; i++) row[i] += N::load(line + i);
        }
        for (int i = 0; i < N::kLanes; i++) sum[i] += row[i];
    }
    const float pixels = (float)op.input.height * (float)op.input.width;
    for (int i = 0; i < N::kLanes; i++) N::store(to + i, sum[i] / pixels);
}

// One row of one channel block of one image.
template <int DTYPE>
FR_INLINE void add_row(const Work &work, int64_t chunk) {
    using N = Number<DTYPE>;
    using Stored = typename N::Stored;
    const fr_op &op = *work.op;
    const int height = op.output.height, count = blocks(op.output, DTYPE);
    const int row = (int)(chunk % height), block = (int)(chunk / height % count);
    const int64_t image = chunk / height / count;
    const auto line = [&](const fr_tensor &tensor) {
        return work.at(tensor) + image * tensor.image + block * tensor.plane + row * tensor.row;
    };
    const char *a = line(op.input), *b = line(op.residual);
    char *to = line(op.output);
    for (int x = 0; x < op.output.width; x++) {
        for (int i = 0; i < N::kLanes; i++) {
            const float sum = N::load((const Stored *)a + i) + N::load((const Stored *)b + i);
            N::store((Stored *)to + i, activate(sum, op.after));
        }
        a += op.input.pixel, b += op.residual.pixel, to += op.output.pixel;
    }
}

// One row of one image from the caller's tensor.
template <int DTYPE, int OUTSIDE>
FR_INLINE void import_row(const Work &work, int64_t chunk) {
    using N = Number<DTYPE>;
    using Outside = Number<OUTSIDE>;
    const fr_op &op = *work.op;
    const fr_tensor &to = op.output;
    const int64_t image = chunk / to.height, row = chunk % to.height;
    const int64_t *strides = work.outside(op.input).strides;
    const auto *from = (const typename Outside::Stored *)work.at(op.input) +
                       (work.first + image) * strides[0] + row * strides[2];
    char *line = work.at(to) + image * to.image + row * to.row;
    const int64_t step = strides[3];
    for (int channel = 0; channel < to.channels; channel++) {
        const auto *source = from + channel * strides[1];
        char *target = op.small ? line + channel * sizeof(typename N::Stored)
                                : line + channel / N::kLanes * to.plane +
                                      channel % N::kLanes * sizeof(typename N::Stored);
        for (int x = 0; x < to.width; x++)
            N::store((typename N::Stored *)(target + x * to.pixel), Outside::load(source + x * step));
    }
}

// One row of one image into the caller's tensor.
template <int DTYPE, int OUTSIDE>
FR_INLINE void export_row(const Work &work, int64_t chunk) {
    using N = Number<DTYPE>;
    using Outside = Number<OUTSIDE>;
    const fr_op &op = *work.op;
    const fr_tensor &from = op.input;
    const int64_t image = chunk / from.height, row = chunk % from.height;
    const int64_t *strides = work.outside(op.output).strides;
    auto *to = (typename Outside::Stored *)work.at(op.output) +
               (work.first + image) * strides[0] + row * strides[2];
    const char *line = work.at(from) + image * from.image + row * from.row;
    for (int x = 0; x < from.width; x++, line += from.pixel, to += strides[3])
        for (int block = 0; block < blocks(from, DTYPE); block++) {
            const auto *lanes = (const typename N::Stored *)(line + block * from.plane);
            auto *target = to + block * N::kLanes * strides[1];
            for (int i = 0; i < lanes_of<DTYPE>(from, block); i++)
                Outside::store(target + i * strides[1], N::load(lanes + i));
        }
}

// Both dtypes for both vector widths.
#define FR_BOTH(NAME, ROW)                                                             \
    FR_WITH_AVX2 void NAME##_avx2(const Work &w, int64_t c) { ROW<FR_FLOAT32>(w, c); } \
    FR_WITH_AVX512 void NAME##_avx512(const Work &w, int64_t c) {                      \
        if (w.op->dtype == FR_BFLOAT16)                                                \
            ROW<FR_BFLOAT16>(w, c);                                                    \
        else                                                                           \
            ROW<FR_FLOAT32>(w, c);                                                     \
    }
FR_BOTH(max_pool, max_pool_row)
FR_BOTH(mean, mean_block)
FR_BOTH(add, add_row)

#define FR_ALL(NAME, ROW)                                                   \
    template <int DTYPE>                                                    \
    FR_INLINE void NAME##_any(const Work &w, int64_t c) {                   \
        if (w.op->outside_dtype == FR_BFLOAT16)                             \
            ROW<DTYPE, FR_BFLOAT16>(w, c);                                  \
        else                                                                \
            ROW<DTYPE, FR_FLOAT32>(w, c);                                   \
    }                                                                       \
    FR_BOTH(NAME, NAME##_any)
FR_ALL(import, import_row)
FR_ALL(export, export_row)

int64_t rows_of_blocks(const Work &work) {
    const fr_tensor &output = work.op->output;
    return (int64_t)work.images * blocks(output, work.op->dtype) * output.height;
}

}  // namespace

#define FR_CHUNK(NAME)                                  \
    void NAME##_chunk(const Work &work, int64_t chunk) { \
        if (work.op->isa == FR_AVX2)                     \
            NAME##_avx2(work, chunk);                    \
        else                                             \
            NAME##_avx512(work, chunk);                  \
    }
FR_CHUNK(max_pool)
FR_CHUNK(mean)
FR_CHUNK(add)
FR_CHUNK(import)
FR_CHUNK(export)

int64_t pool_chunks(const Work &work) { return rows_of_blocks(work); }
int64_t add_chunks(const Work &work) { return rows_of_blocks(work); }
int64_t mean_chunks(const Work &work) {
    return (int64_t)work.images * blocks(work.op->input, work.op->dtype);
}
int64_t image_rows(const Work &work) { return (int64_t)work.images * work.op->output.height; }
int64_t export_chunks(const Work &work) { return (int64_t)work.images * work.op->input.height; }

}  // namespace fastres

#endif

// Everything that is not a convolution, row by row: plain loops over the lanes of a line. This file
// is compiled once for each vector width; see elementwise_avx2.cpp and elementwise_avx512.cpp,
// which say for what before they include it. (GCC takes vectors apart before it inlines, so that a
// function must be compiled for the width that its caller has.)

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

// 16 float32 numbers; the compiler splits them where registers are shorter.
typedef float Lanes __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

// A line as vectors of float32: one, or of bfloat16 two.
template <int DTYPE>
constexpr int kVectors = Number<DTYPE>::kLanes / 16;

template <int DTYPE>
FR_INLINE void load(const char *line, int vector, Lanes &to) {
    if (DTYPE == FR_FLOAT32) {
        std::memcpy(&to, line, 64);
    } else {
        Halves halves;
        std::memcpy(&halves, line + vector * 32, 32);
        const Bits bits = __builtin_convertvector(halves, Bits) << 16;
        std::memcpy(&to, &bits, 64);
    }
}

// Half to even, as Number<FR_BFLOAT16>::store.
template <int DTYPE>
FR_INLINE void store(char *line, int vector, const Lanes &from) {
    if (DTYPE == FR_FLOAT32) {
        std::memcpy(line, &from, 64);
    } else {
        Bits bits;
        std::memcpy(&bits, &from, 64);
        const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
        const Halves halves =
            __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded, Halves);
        std::memcpy(line + vector * 32, &halves, 32);
    }
}

FR_INLINE void activate(Lanes &x, int kind) {
    const Lanes zero = {}, six = zero + 6.0f;
    if (kind == FR_RELU || kind == FR_RELU6) x = x < zero ? zero : x;  // NaN is not below 0
    if (kind == FR_RELU6) x = x > six ? six : x;
    if (kind == FR_HARDSWISH) {
        Lanes gate = x + 3.0f;
        gate = gate < zero ? zero : gate;
        gate = gate > six ? six : gate;
        x = x * gate / six;
    }
}

// One row of one channel block of one image.
template <int DTYPE>
FR_INLINE void max_pool_row(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const int height = op.output.height, count = blocks(op.output, DTYPE);
    const int row = (int)(chunk % height), block = (int)(chunk / height % count);
    const int64_t image = chunk / height / count;
    const char *from = work.at(op.input) + image * op.input.image + block * op.input.plane;
    char *to = work.at(op.output) + image * op.output.image + block * op.output.plane +
               row * op.output.row;
    const Lanes least = Lanes{} - std::numeric_limits<float>::infinity();
    for (int column = 0; column < op.output.width; column++, to += op.output.pixel) {
        Lanes best[kVectors<DTYPE>];
        for (Lanes &lanes : best) lanes = least;
        for (int r = 0; r < op.kernel[0]; r++) {
            const int y = row * op.stride[0] - op.padding[0] + r * op.dilation[0];
            if (y < 0 || y >= op.input.height) continue;
            for (int s = 0; s < op.kernel[1]; s++) {
                const int x = column * op.stride[1] - op.padding[1] + s * op.dilation[1];
                if (x < 0 || x >= op.input.width) continue;
                for (int v = 0; v < kVectors<DTYPE>; v++) {
                    Lanes value;
                    load<DTYPE>(from + y * op.input.row + x * op.input.pixel, v, value);
                    best[v] = ((value > best[v]) | (value != value)) ? value : best[v];  // NaN wins
                }
            }
        }
        for (int v = 0; v < kVectors<DTYPE>; v++) store<DTYPE>(to, v, best[v]);
    }
}

// One channel block of one image: the mean over its pixels.
template <int DTYPE>
FR_INLINE void mean_block(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const int count = blocks(op.input, DTYPE);
    const int64_t image = chunk / count, block = chunk % count;
    const char *from = work.at(op.input) + image * op.input.image + block * op.input.plane;
    char *to = work.at(op.output) + image * op.output.image + block * op.output.plane;
    const float pixels = (float)op.input.height * (float)op.input.width;
    for (int v = 0; v < kVectors<DTYPE>; v++) {
        Lanes sum = {};
        for (int y = 0; y < op.input.height; y++) {
            Lanes row = {};  // sums of sums lose less
            for (int x = 0; x < op.input.width; x++) {
                Lanes value;
                load<DTYPE>(from + y * op.input.row + x * op.input.pixel, v, value);
                row += value;
            }
            sum += row;
        }
        store<DTYPE>(to, v, sum / pixels);
    }
}

// One row of one channel block of one image.
template <int DTYPE>
FR_INLINE void add_row(const Work &work, int64_t chunk) {
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
        for (int v = 0; v < kVectors<DTYPE>; v++) {
            Lanes sum, other;
            load<DTYPE>(a, v, sum);
            load<DTYPE>(b, v, other);
            sum += other;
            activate(sum, op.after);
            store<DTYPE>(to, v, sum);
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
    bool ordinary = true;
    for (int channel = 0; channel < to.channels; channel++) {
        const auto *source = from + channel * strides[1];
        char *target = op.small ? line + channel * sizeof(typename N::Stored)
                                : line + channel / N::kLanes * to.plane +
                                      channel % N::kLanes * sizeof(typename N::Stored);
        for (int x = 0; x < to.width; x++) {
            const float value = Outside::load(source + x * step);
            ordinary &= is_ordinary(value);
            N::store((typename N::Stored *)(target + x * to.pixel), value);
        }
    }
    if (!ordinary) work.data->unusual->store(true, std::memory_order_relaxed);
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
    auto *to = (typename Outside::Stored *)work.at(op.output) + (work.first + image) * strides[0] +
               row * strides[2];
    const char *line = work.at(from) + image * from.image + row * from.row;
    bool ordinary = true;
    for (int x = 0; x < from.width; x++, line += from.pixel, to += strides[3])
        for (int block = 0; block < blocks(from, DTYPE); block++) {
            const auto *lanes = (const typename N::Stored *)(line + block * from.plane);
            auto *target = to + block * N::kLanes * strides[1];
            for (int i = 0; i < lanes_of<DTYPE>(from, block); i++) {
                const float value = N::load(lanes + i);
                ordinary &= is_ordinary(value);
                Outside::store(target + i * strides[1], value);
            }
        }
    if (!ordinary) work.data->unusual->store(true, std::memory_order_relaxed);
}

// The op's dtype, and the dtype of the caller's tensor.
#define FR_BY_DTYPE(ROW) \
    (work.op->dtype == FR_BFLOAT16 ? ROW<FR_BFLOAT16>(work, chunk) : ROW<FR_FLOAT32>(work, chunk))
#define FR_BY_BOTH(ROW)                                                                    \
    if (work.op->dtype == FR_BFLOAT16)                                                     \
        work.op->outside_dtype == FR_BFLOAT16 ? ROW<FR_BFLOAT16, FR_BFLOAT16>(work, chunk) \
                                              : ROW<FR_BFLOAT16, FR_FLOAT32>(work, chunk); \
    else                                                                                   \
        work.op->outside_dtype == FR_BFLOAT16 ? ROW<FR_FLOAT32, FR_BFLOAT16>(work, chunk)  \
                                              : ROW<FR_FLOAT32, FR_FLOAT32>(work, chunk)

void elementwise(const Work &work, int64_t chunk) {
    switch (work.op->kind) {
        case FR_MAX_POOL: FR_BY_DTYPE(max_pool_row); break;
        case FR_MEAN: FR_BY_DTYPE(mean_block); break;
        case FR_ADD: FR_BY_DTYPE(add_row); break;
        case FR_IMPORT: FR_BY_BOTH(import_row); break;
        case FR_EXPORT: FR_BY_BOTH(export_row); break;
    }
}

}  // namespace
}  // namespace fastres

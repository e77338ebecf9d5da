// The caller's tensors: into lines and out of them, perhaps as other numbers.

namespace fastres {
namespace {

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

// The same into uint8: 16 pixels at a time, four channels of each as one word.
template <int OUTSIDE>
FR_INLINE void quantize_row(const Work &work, int64_t chunk) {
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
    for (int channel = 0; channel < to.channels; channel += 4) {
        const int channels = std::min(4, to.channels - channel);
        char *target = op.small ? line + channel : line + channel / 64 * to.plane + channel % 64;
        for (int x = 0; x < to.width; x += 16) {
            const int pixels = std::min(16, to.width - x);
            Integers words = {};
            for (int c = 0; c < channels; c++) {
                const auto *source = from + (channel + c) * strides[1] + x * step;
                alignas(64) float values[16] = {};
                for (int i = 0; i < pixels; i++) values[i] = Outside::load(source + i * step);
                Lanes value;
                std::memcpy(&value, values, 64);
                for (int i = 0; i < 16; i++) ordinary &= is_ordinary(values[i]);
                Integers q;
                quantize(value / op.outside_scale, op.output_zero, q);
                words |= q << (8 * c);
            }
            alignas(64) int32_t each[16];
            std::memcpy(each, &words, 64);
            for (int i = 0; i < pixels; i++) std::memcpy(target + (x + i) * to.pixel, &each[i], 4);
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

// One row of one image out of uint8.
template <int OUTSIDE>
FR_INLINE void dequantize_row(const Work &work, int64_t chunk) {
    using Outside = Number<OUTSIDE>;
    const fr_op &op = *work.op;
    const fr_tensor &from = op.input;
    const int64_t image = chunk / from.height, row = chunk % from.height;
    const int64_t *strides = work.outside(op.output).strides;
    auto *to = (typename Outside::Stored *)work.at(op.output) + (work.first + image) * strides[0] +
               row * strides[2];
    const char *line = work.at(from) + image * from.image + row * from.row;
    for (int x = 0; x < from.width; x++, line += from.pixel, to += strides[3])
        for (int channel = 0; channel < from.channels; channel++) {
            const auto q = (uint8_t)line[channel / 64 * from.plane + channel % 64];
            const float value = (float)(q - op.input_zero) * op.outside_scale;
            Outside::store(to + channel * strides[1], value);
        }
}

}  // namespace
}  // namespace fastres

// Numbers that come to lie elsewhere: channels in another order, images in another size.

namespace fastres {
namespace {

FR_INLINE void copy(char *to, const char *from, int bytes) {
    switch (bytes) {  // what a compiler makes one or a few instructions of
        case 64: std::memcpy(to, from, 64); break;
        case 4: std::memcpy(to, from, 4); break;
        case 2: std::memcpy(to, from, 2); break;
        case 1: *to = *from; break;
        default: std::memcpy(to, from, (size_t)bytes);
    }
}

// One row of one image.
FR_INLINE void gather_row(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const char *from = whole_row(work, op.input, chunk);
    char *to = whole_row(work, op.output, chunk);
    for (int i = 0; i < op.copy_count; i++) {
        const int64_t read = op.copies[3 * i], written = op.copies[3 * i + 1];
        const int bytes = op.copies[3 * i + 2];
        for (int x = 0; x < op.output.width; x++)
            copy(to + written + x * op.output.pixel, from + read + x * op.input.pixel, bytes);
    }
}

// One row of one channel block of one image.
template <int DTYPE>
FR_INLINE void resize_row(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const Row<DTYPE> at(op.output, chunk);
    const char *from = at.plane(work, op.input);
    const bool is_outside = op.source_rows[2 * at.row] < 0;
    const char *first = from + op.source_rows[2 * at.row] * op.input.row;
    const char *second = from + op.source_rows[2 * at.row + 1] * op.input.row;
    char *to = at.line(work, op.output);
    for (int column = 0; column < op.output.width; column++, to += op.output.pixel) {
        const int64_t left = op.source_columns[2 * column] * op.input.pixel;
        const int64_t right = op.source_columns[2 * column + 1] * op.input.pixel;
        if (!op.row_shares) {
            if (is_outside || left < 0)
                std::memset(to, 0, 64);
            else
                std::memcpy(to, first + left, 64);
            continue;
        }
        const float down = op.row_shares[at.row], across = op.column_shares[column];
        for (int v = 0; v < kVectors<DTYPE>; v++) {
            Lanes a, b, c, d;
            load<DTYPE>(first + left, v, a);
            load<DTYPE>(first + right, v, b);
            load<DTYPE>(second + left, v, c);
            load<DTYPE>(second + right, v, d);
            const Lanes upper = a * (1.0f - across) + b * across;
            const Lanes lower = c * (1.0f - across) + d * across;
            store<DTYPE>(to, v, upper * (1.0f - down) + lower * down);
        }
    }
}

// One image of one pixel: each channel from its neighbours, with the same weights for all.
template <int DTYPE>
FR_INLINE void channel_convolution(const Work &work, int64_t image) {
    using N = Number<DTYPE>;
    const fr_op &op = *work.op;
    const float *weights = (const float *)op.weights;
    const char *from = work.at(op.input) + image * op.input.image;
    char *to = work.at(op.output) + image * op.output.image;
    const auto place = [](const fr_tensor &tensor, int channel) {
        return channel / N::kLanes * tensor.plane +
               channel % N::kLanes * (int64_t)sizeof(typename N::Stored);
    };
    for (int channel = 0; channel < op.output.channels; channel++) {
        float sum = 0.0f;
        for (int k = 0; k < op.kernel[0]; k++) {
            const int other = channel + k - op.padding[0];
            if (other < 0 || other >= op.input.channels) continue;
            sum +=
                weights[k] * N::load((const typename N::Stored *)(from + place(op.input, other)));
        }
        if (op.bias) sum += *(const float *)op.bias;
        N::store((typename N::Stored *)(to + place(op.output, channel)), sum);
    }
}

}  // namespace
}  // namespace fastres

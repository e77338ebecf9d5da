// Windows and whole images: the largest numbers and means.

namespace fastres {
namespace {

// The largest numbers of a window, lane by lane.
template <int DTYPE>
struct Largest {
    Lanes best[kVectors<DTYPE>];

    FR_INLINE Largest() {
        for (Lanes &lanes : best) lanes = Lanes{} - std::numeric_limits<float>::infinity();
    }
    FR_INLINE void take(const char *line) {
        for (int v = 0; v < kVectors<DTYPE>; v++) {
            Lanes value;
            load<DTYPE>(line, v, value);
            best[v] = ((value > best[v]) | (value != value)) ? value : best[v];  // NaN wins
        }
    }
    FR_INLINE void put(char *line) const {
        for (int v = 0; v < kVectors<DTYPE>; v++) store<DTYPE>(line, v, best[v]);
    }
};

template <>
struct Largest<FR_UINT8> {
    LineOfBytes best = {};

    FR_INLINE void take(const char *line) {
        LineOfBytes value;
        std::memcpy(&value, line, 64);
        best = value > best ? value : best;
    }
    FR_INLINE void put(char *line) const { std::memcpy(line, &best, 64); }
};

// One row of one channel block of one image.
template <int DTYPE>
FR_INLINE void max_pool_row(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const Row<DTYPE> at(op.output, chunk);
    const int row = at.row;
    const char *from = at.plane(work, op.input);
    char *to = at.line(work, op.output);
    for (int column = 0; column < op.output.width; column++, to += op.output.pixel) {
        Largest<DTYPE> largest;
        for (int r = 0; r < op.kernel[0]; r++) {
            const int y = row * op.stride[0] - op.padding[0] + r * op.dilation[0];
            if (y < 0 || y >= op.input.height) continue;
            for (int s = 0; s < op.kernel[1]; s++) {
                const int x = column * op.stride[1] - op.padding[1] + s * op.dilation[1];
                if (x < 0 || x >= op.input.width) continue;
                largest.take(from + y * op.input.row + x * op.input.pixel);
            }
        }
        largest.put(to);
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

template <>
FR_INLINE void mean_block<FR_UINT8>(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const int count = blocks(op.input, FR_UINT8);
    const int64_t image = chunk / count, block = chunk % count;
    const char *from = work.at(op.input) + image * op.input.image + block * op.input.plane;
    char *to = work.at(op.output) + image * op.output.image + block * op.output.plane;
    const float pixels = (float)op.input.height * (float)op.input.width;
    for (int v = 0; v < 4; v++) {
        Integers sum = {}, q;
        for (int y = 0; y < op.input.height; y++)
            for (int x = 0; x < op.input.width; x++) {
                load_integers(from + y * op.input.row + x * op.input.pixel, v, op.input_zero, q);
                sum += q;
            }
        const Lanes mean = __builtin_convertvector(sum, Lanes) * op.input_multiplier / pixels;
        quantize(mean, op.output_zero, q);
        store_bytes(to, v, q);
    }
}

// The pixels of a window along one dimension, and how many it counts.
struct Window {
    int begin, end, size;
};

FR_INLINE Window window(const fr_op &op, int dimension, int index, int size, int outputs) {
    if (op.adaptive) {
        const int begin = (int)((int64_t)index * size / outputs);
        const int end = (int)(((int64_t)(index + 1) * size + outputs - 1) / outputs);
        return {begin, end, end - begin};
    }
    const int padding = op.padding[dimension];
    const int first = index * op.stride[dimension] - padding;
    const int last = std::min(first + op.kernel[dimension], size + padding);
    const int begin = std::max(first, 0), end = std::min(last, size);
    return {begin, end, op.counts_padding ? last - first : end - begin};
}

// The mean of a window, as torch's avg_pool2d and adaptive_avg_pool2d have it.
template <int DTYPE>
FR_INLINE void avg_pool_row(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const Row<DTYPE> at(op.output, chunk);
    const char *from = at.plane(work, op.input);
    char *to = at.line(work, op.output);
    const Window rows = window(op, 0, at.row, op.input.height, op.output.height);
    for (int column = 0; column < op.output.width; column++, to += op.output.pixel) {
        const Window columns = window(op, 1, column, op.input.width, op.output.width);
        Lanes sum[kVectors<DTYPE>] = {};
        for (int y = rows.begin; y < rows.end; y++)
            for (int x = columns.begin; x < columns.end; x++)
                for (int v = 0; v < kVectors<DTYPE>; v++) {
                    Lanes value;
                    load<DTYPE>(from + y * op.input.row + x * op.input.pixel, v, value);
                    sum[v] += value;
                }
        const float pixels = op.divisor ? (float)op.divisor : (float)rows.size * columns.size;
        for (int v = 0; v < kVectors<DTYPE>; v++) store<DTYPE>(to, v, sum[v] / pixels);
    }
}

}  // namespace
}  // namespace fastres

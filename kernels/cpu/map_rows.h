// Number by number: scales, activations, products and sums of tensors.

namespace fastres {
namespace {

// Every function there is, once for all operations.
__attribute__((noinline)) void activate_any(const fr_op &op, const fr_function &f, int channel,
                                            Lanes &x) {
    Function<Lanes> function{f.kind, f.values, {}};
    if (f.kind == FR_PRELU) std::memcpy(&function.slopes, op.slopes + channel, 64);
    apply<Lanes, Integers>(x, function);
}

// An op's activation of the 16 numbers from channel `channel` on.
FR_INLINE void activate(const fr_op &op, const fr_function &f, int channel, Lanes &x) {
    if (f.kind == FR_RELU)
        x = x < Lanes{} ? Lanes{} : x;
    else if (f.kind != FR_NONE)
        activate_any(op, f, channel, x);
}

template <int N>
FR_INLINE void activate_all(const fr_op &op, const fr_function &f, int channel, Lanes (&all)[N]) {
    if (f.kind == FR_RELU) {
        for (Lanes &x : all) x = x < Lanes{} ? Lanes{} : x;
    } else if (f.kind != FR_NONE) {
        for (Lanes &x : all) activate_any(op, f, channel, x);
    }
}

// Lanes without a channel hold zero, whatever a function makes of that.
FR_INLINE void keep_first(int count, Lanes &x) {
    if (count >= 16) return;
    const Integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    x = lane < count ? x : Lanes{};
}

// A tensor that is added or multiplied; where it has one row, column or channel, that stands for
// all.
template <int DTYPE>
struct Operand {
    const char *line;
    int64_t pixel;
    bool one_channel;

    FR_INLINE Operand(const Work &work, const fr_tensor &tensor, const Row<DTYPE> &at) {
        const fr_tensor &out = work.op->output;
        one_channel = tensor.channels == 1 && out.channels > 1;
        line = work.at(tensor) + at.image * tensor.image;
        if (!one_channel) line += at.block * tensor.plane;
        if (tensor.height > 1) line += at.row * tensor.row;
        pixel = tensor.width > 1 ? tensor.pixel : 0;
    }
    template <int N>
    FR_INLINE void next(int column, int v, Lanes (&to)[N]) const {
        const char *from = line + column * pixel;
        for (int i = 0; i < N; i++, from += pixel) load<DTYPE>(from, one_channel ? 0 : v, to[i]);
        if (one_channel)
            for (Lanes &each : to) each = Lanes{} + each[0];
    }
};

// One row of one channel block of one image.
template <int DTYPE>
struct Map {
    const fr_op &op;
    Operand<DTYPE> x, factor, residual;
    char *to;
    int channel, present;

    // N pixels at once, since asking what to do takes longer than doing it.
    template <int N>
    FR_INLINE void pixels(int column) const {
        for (int v = 0; v < kVectors<DTYPE>; v++) {
            const int first = channel + 16 * v;
            Lanes values[N], others[N];
            x.next(column, v, values);
            if (op.scale && op.shift) {
                // Rounded once: a shift that takes most of the product away would leave the
                // product's rounding.
                Lanes scale, shift;
                std::memcpy(&scale, op.scale + first, 64);
                std::memcpy(&shift, op.shift + first, 64);
                for (Lanes &value : values) multiply_add(value, scale, shift);
            } else if (op.scale) {
                std::memcpy(&others[0], op.scale + first, 64);
                for (Lanes &value : values) value *= others[0];
            } else if (op.shift) {
                std::memcpy(&others[0], op.shift + first, 64);
                for (Lanes &value : values) value += others[0];
            }
            activate_all(op, op.before, first, values);
            if (op.has_factor) {
                factor.next(column, v, others);
                for (int i = 0; i < N; i++) values[i] *= others[i];
            }
            if (op.has_residual) {
                residual.next(column, v, others);
                for (int i = 0; i < N; i++) values[i] += others[i] * op.residual_multiplier;
            }
            activate_all(op, op.after, first, values);
            char *target = to + column * op.output.pixel;
            for (int i = 0; i < N; i++, target += op.output.pixel) {
                keep_first(present - 16 * v, values[i]);
                store<DTYPE>(target, v, values[i]);
            }
        }
    }
};

template <int DTYPE>
FR_INLINE void map_row(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const Row<DTYPE> at(op.output, chunk);
    const Operand<DTYPE> x(work, op.input, at);
    const Map<DTYPE> map{op,
                         x,
                         op.has_factor ? Operand<DTYPE>(work, op.factor, at) : x,
                         op.has_residual ? Operand<DTYPE>(work, op.residual, at) : x,
                         at.line(work, op.output),
                         at.block * Number<DTYPE>::kLanes,
                         lanes_of<DTYPE>(op.output, at.block)};
    int column = 0;
    for (; column + 8 <= op.output.width; column += 8) map.template pixels<8>(column);
    for (; column < op.output.width; column++) map.template pixels<1>(column);
}

// The sum of quantised numbers.
template <>
FR_INLINE void map_row<FR_UINT8>(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const Row<FR_UINT8> at(op.output, chunk);
    const char *a = at.line(work, op.input), *b = at.line(work, op.residual);
    char *to = at.line(work, op.output);
    for (int x = 0; x < op.output.width; x++) {
        for (int v = 0; v < 4; v++) {
            Integers one, other;
            load_integers(a, v, op.input_zero, one);
            load_integers(b, v, op.residual_zero, other);
            Lanes sum = __builtin_convertvector(one, Lanes) * op.input_multiplier +
                        __builtin_convertvector(other, Lanes) * op.residual_multiplier;
            activate(op, op.after, 0, sum);
            quantize(sum * op.output_multiplier, op.output_zero, one);
            store_bytes(to, v, one);
        }
        a += op.input.pixel, b += op.residual.pixel, to += op.output.pixel;
    }
}

// Where 16 of a pixel's channels lie, by their number.
template <int DTYPE>
FR_INLINE int64_t place(const fr_tensor &tensor, int sixteen) {
    return sixteen / kVectors<DTYPE> * tensor.plane +
           sixteen % kVectors<DTYPE> * (64 / kVectors<DTYPE>);
}

// One row of one image, as another kind of numbers.
template <int FROM, int TO>
FR_INLINE void convert(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const fr_tensor &x = op.input, &y = op.output;
    const char *from = whole_row(work, x, chunk);
    char *to = whole_row(work, y, chunk);
    for (int first = 0; first < y.channels; first += 16) {
        const char *source = from + place<FROM>(x, first / 16);
        char *target = to + place<TO>(y, first / 16);
        // Vectors are counted from where they begin.
        for (int column = 0; column < y.width; column++, source += x.pixel, target += y.pixel) {
            Lanes value;
            if (FROM == FR_UINT8) {
                Integers q;
                load_integers(source, 0, op.input_zero, q);
                value = __builtin_convertvector(q, Lanes) * op.outside_scale;
            } else {
                load<FROM>(source, 0, value);
            }
            if (TO == FR_UINT8) {
                Integers q;
                quantize(value / op.outside_scale, op.output_zero, q);
                store_bytes(target, 0, q);
            } else {
                keep_first(y.channels - first, value);
                store<TO>(target, 0, value);
            }
        }
    }
}

FR_INLINE void convert_row(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    switch (op.dtype * 3 + op.outside_dtype) {
        case FR_FLOAT32 * 3 + FR_BFLOAT16: convert<FR_FLOAT32, FR_BFLOAT16>(work, chunk); break;
        case FR_FLOAT32 * 3 + FR_UINT8: convert<FR_FLOAT32, FR_UINT8>(work, chunk); break;
        case FR_BFLOAT16 * 3 + FR_FLOAT32: convert<FR_BFLOAT16, FR_FLOAT32>(work, chunk); break;
        case FR_BFLOAT16 * 3 + FR_UINT8: convert<FR_BFLOAT16, FR_UINT8>(work, chunk); break;
        case FR_UINT8 * 3 + FR_FLOAT32: convert<FR_UINT8, FR_FLOAT32>(work, chunk); break;
        case FR_UINT8 * 3 + FR_BFLOAT16: convert<FR_UINT8, FR_BFLOAT16>(work, chunk); break;
    }
}

}  // namespace
}  // namespace fastres

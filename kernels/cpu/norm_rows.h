// Normalisation by an image's own numbers: mean and variance of groups of channels, or of a pixel.

namespace fastres {
namespace {

// The channels of one chunk, and those of a group.
struct Channels {
    int64_t image;
    int first, end, per_group;
};

FR_INLINE Channels channels_of(const fr_op &op, int64_t chunk) {
    const int per_group = op.output.channels / op.groups;
    const int count = norm_channels(op);
    const int64_t parts = (op.output.channels + count - 1) / count;
    const int first = (int)(chunk % parts) * count;
    return {chunk / parts, first, std::min(first + count, op.output.channels), per_group};
}

// Over the pixels of 16 channels: the sums of what `term` makes of each.
template <int DTYPE, class Term>
FR_INLINE void sum_up(const fr_tensor &tensor, const char *from, const Term &term, Lanes &sum) {
    sum = Lanes{};
    for (int y = 0; y < tensor.height; y++) {
        Lanes row = {};  // sums of sums lose less
        for (int x = 0; x < tensor.width; x++) {
            Lanes value;
            load<DTYPE>(from + y * tensor.row + x * tensor.pixel, 0, value);
            term(value);
            row += value;
        }
        sum += row;
    }
}

// Sums per channel to what `finish` makes of their groups' means, in every channel of the group.
template <class Finish>
FR_INLINE void share(const Channels &c, double pixels, float *numbers, const Finish &finish) {
    for (int first = c.first; first < c.end; first += c.per_group) {
        double sum = 0.0;
        for (int i = 0; i < c.per_group; i++) sum += numbers[first - c.first + i];
        const float shared = (float)finish(sum / (pixels * c.per_group));
        for (int i = 0; i < c.per_group; i++) numbers[first - c.first + i] = shared;
    }
}

// The variance from the squares of what is left without the mean: nothing large cancels.
template <int DTYPE>
FR_INLINE void group_norm(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const fr_tensor &x = op.input, &y = op.output;
    const Channels c = channels_of(op, chunk);
    const char *from = work.at(x) + c.image * x.image;
    char *to = work.at(y) + c.image * y.image;
    char *scratch = work.data->arena + op.scratch_offset + work.thread * op.scratch_bytes;
    float *means = (float *)scratch, *scales = (float *)(scratch + op.scratch_bytes / 2);
    const double pixels = (double)x.height * x.width, epsilon = op.epsilon;
    const int sixteens = (c.end - c.first + 15) / 16, offset = c.first / 16;
    for (int i = 0; i < sixteens; i++) {
        Lanes sum;
        sum_up<DTYPE>(x, from + place<DTYPE>(x, offset + i), [](Lanes &) {}, sum);
        std::memcpy(means + 16 * i, &sum, 64);
    }
    share(c, pixels, means, [](double mean) { return mean; });
    for (int i = 0; i < sixteens; i++) {
        Lanes sum, mean;
        std::memcpy(&mean, means + 16 * i, 64);
        const auto square = [&](Lanes &value) {
            value -= mean;
            value *= value;
        };
        sum_up<DTYPE>(x, from + place<DTYPE>(x, offset + i), square, sum);
        std::memcpy(scales + 16 * i, &sum, 64);
    }
    share(c, pixels, scales, [&](double variance) { return 1.0 / std::sqrt(variance + epsilon); });
    for (int i = 0; i < sixteens; i++) {
        const int channel = c.first + 16 * i;
        Lanes mean, scale, weight, bias = {};
        std::memcpy(&mean, means + 16 * i, 64);
        std::memcpy(&scale, scales + 16 * i, 64);
        if (op.scale) {
            std::memcpy(&weight, op.scale + channel, 64);
            scale *= weight;
        }
        if (op.shift) std::memcpy(&bias, op.shift + channel, 64);
        const char *source = from + place<DTYPE>(x, offset + i);
        char *target = to + place<DTYPE>(y, offset + i);
        for (int row = 0; row < y.height; row++)
            for (int column = 0; column < y.width; column++) {
                Lanes value;
                load<DTYPE>(source + row * x.row + column * x.pixel, 0, value);
                value = (value - mean) * scale + bias;
                activate(op, op.after, channel, value);
                keep_first(c.end - channel, value);
                store<DTYPE>(target + row * y.row + column * y.pixel, 0, value);
            }
    }
}

// The sum of what `term` makes of a pixel's channels.
template <int DTYPE, class Term>
FR_INLINE double sum_of_channels(const fr_tensor &tensor, const char *pixel, const Term &term) {
    Lanes sum = {};
    for (int channel = 0; channel < tensor.channels; channel += 16) {
        Lanes value;
        load<DTYPE>(pixel + place<DTYPE>(tensor, channel / 16), 0, value);
        term(value);
        keep_first(tensor.channels - channel, value);
        sum += value;
    }
    float lanes[16];
    std::memcpy(lanes, &sum, 64);
    double total = 0.0;
    for (const float lane : lanes) total += lane;
    return total;
}

// One row; of each pixel the variance from the squares of what is left without the mean, as above.
template <int DTYPE>
FR_INLINE void layer_norm_row(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const fr_tensor &x = op.input, &y = op.output;
    const char *from = whole_row(work, x, chunk);
    char *to = whole_row(work, y, chunk);
    for (int column = 0; column < y.width; column++, from += x.pixel, to += y.pixel) {
        const double mean = sum_of_channels<DTYPE>(x, from, [](Lanes &) {}) / x.channels;
        const float centre = (float)mean;
        const auto square = [&](Lanes &value) {
            value -= centre;
            value *= value;
        };
        const double variance = sum_of_channels<DTYPE>(x, from, square) / x.channels;
        const float scale = (float)(1.0 / std::sqrt(variance + op.epsilon));
        for (int channel = 0; channel < y.channels; channel += 16) {
            Lanes value, weight, bias;
            load<DTYPE>(from + place<DTYPE>(x, channel / 16), 0, value);
            value = (value - centre) * scale;
            if (op.scale) {
                std::memcpy(&weight, op.scale + channel, 64);
                value *= weight;
            }
            if (op.shift) {
                std::memcpy(&bias, op.shift + channel, 64);
                value += bias;
            }
            activate(op, op.after, channel, value);
            keep_first(y.channels - channel, value);
            store<DTYPE>(to + place<DTYPE>(y, channel / 16), 0, value);
        }
    }
}

}  // namespace
}  // namespace fastres

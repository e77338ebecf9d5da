// A small network from many threads at once, for the sanitizers: several callers share plans, each
// with one or more threads of the team, by images and together. Every answer is compared with plain
// loops, so that what a sanitizer does not see (a chunk done twice, or by nobody) shows too.
//
// images -> import -> convolution 3x3 and ReLU -> max pool 2x2 -> addition to itself -> export
//                                              \-> mean -> export

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "native.h"

namespace {

constexpr int kInputs = 5, kOutputs = 20, kSize = 6, kHalf = kSize / 2, kPart = 2;
constexpr int64_t kLine = 64, kPage = 4096;

void require(bool holds, const char *what) {
    if (holds) return;
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

float number(int i) { return (float)((i * 7919 + 13) % 101 - 50) / 32; }

// Lines of 16 channels, with a border of zeros.
struct Layout {
    int channels, size, border;
    int64_t offset;

    int64_t row() const { return (size + 2 * border) * kLine; }
    int64_t plane() const { return (size + 2 * border) * row(); }
    int64_t image() const { return (channels + 15) / 16 * plane(); }
    int32_t pixel(int image_index, int y, int x) const {  // in units of 4 bytes
        return (int32_t)((image_index * image() + y * row() + x * kLine) / 4);
    }
    fr_tensor tensor(bool whole) const {
        fr_tensor t = {};
        t.offset = offset + border * (row() + kLine);
        t.image = image();
        t.plane = plane();
        t.row = row();
        t.pixel = kLine;
        t.space = FR_ARENA;
        t.whole = whole;
        t.channels = channels;
        t.height = t.width = size;
        return t;
    }
};

fr_tensor outside(int space, int index) {
    fr_tensor t = {};
    t.space = space;
    t.index = index;
    t.whole = 1;
    return t;
}

// The tables and weights of a plan, which outlive it, and the plan.
class Network {
public:
    Network(int images, int isa) : images_(images), weights_(9 * 16 * 32 / 16), bias_(32) {
        const Layout image{kInputs, kSize, 1, 0};
        const Layout wide{kOutputs, kSize, 0, end(image, kPart)};
        const Layout half{kOutputs, kHalf, 0, end(wide, kPart)};
        const Layout mean{kOutputs, 1, 0, end(half, images)};
        const int64_t guard = (end(mean, images) + kPage - 1) / kPage * kPage;

        for (int tap = 0; tap < 9; tap++) {
            steps_.push_back(image.pixel(0, tap / 3 - 1, tap % 3 - 1));
            for (int in = 0; in < kInputs; in++)
                for (int out = 0; out < kOutputs; out++)
                    weights_[tap * 32 + in * 2 + out / 16].number[out % 16] = weight(out, in, tap);
        }
        for (int out = 0; out < kOutputs; out++) bias_[out] = number(out);
        for (int i = 0; i < kPart; i++)
            for (int y = 0; y < kSize; y++)
                for (int x = 0; x < kSize; x++) {
                    input_px_.push_back(image.pixel(i, y, x));
                    output_px_.push_back(wide.pixel(i, y, x));
                }

        std::vector<fr_op> ops;
        const auto add = [&](int kind, const fr_tensor &input, const fr_tensor &output) -> fr_op & {
            fr_op op = {};
            op.kind = kind;
            op.isa = isa;
            op.dtype = op.outside_dtype = FR_FLOAT32;
            op.images = kPart;
            op.input = input;
            op.output = output;
            ops.push_back(op);
            return ops.back();
        };
        add(FR_IMPORT, outside(FR_INPUT, 0), image.tensor(false));
        fr_op &convolution = add(FR_CONVOLUTION, image.tensor(false), wide.tensor(false));
        convolution.after.kind = FR_RELU;
        convolution.input_px = input_px_.data();
        convolution.output_px = output_px_.data();
        convolution.steps = steps_.data();
        convolution.weights = weights_.data();
        convolution.bias = bias_.data();
        convolution.panel_bytes = 9 * 16 * 32 * 4;
        convolution.pixels = kSize * kSize;
        convolution.step_count = 9;
        convolution.step_units = 16;
        convolution.panels = convolution.chunk_panels = 1;
        convolution.tile = 5;
        convolution.group = 2;
        convolution.prefetch = 1;
        fr_op &pool = add(FR_MAX_POOL, wide.tensor(false), half.tensor(true));
        for (int axis = 0; axis < 2; axis++) {
            pool.kernel[axis] = pool.stride[axis] = 2;
            pool.dilation[axis] = 1;
        }
        const int first = (int)ops.size();
        add(FR_MEAN, half.tensor(true), mean.tensor(true));
        fr_op &sum = add(FR_MAP, half.tensor(true), half.tensor(true));
        sum.residual = half.tensor(true);
        sum.has_residual = 1;
        sum.residual_multiplier = 1.0f;
        add(FR_EXPORT, half.tensor(true), outside(FR_OUTPUT, 0));
        add(FR_EXPORT, mean.tensor(true), outside(FR_OUTPUT, 1));

        // The first phase two images at a time, the last time fewer; the second all at once.
        const fr_phase phases[] = {{0, first, kPart}, {first, (int)ops.size() - first, images}};
        const int64_t guards[] = {guard, kPage};
        plan_ = fr_plan_create(ops.data(), (int)ops.size(), phases, 2, images, guard + kPage,
                               guards, 1);
        require(plan_ != nullptr, "no plan");
    }
    ~Network() { fr_plan_destroy(plan_); }
    Network(const Network &) = delete;

    fr_plan *plan() const { return plan_; }
    int images() const { return images_; }

    static float weight(int out, int in, int tap) { return number(out * 45 + in * 9 + tap) / 8; }

private:
    struct alignas(kLine) Line {
        float number[16] = {};
    };

    static int64_t end(const Layout &layout, int images) {
        return layout.offset + images * layout.image();
    }

    int images_;
    std::vector<Line> weights_;
    std::vector<float> bias_;
    std::vector<int32_t> steps_, input_px_, output_px_;
    fr_plan *plan_ = nullptr;
};

// One caller: its own images, and what is to come out.
class Caller {
public:
    Caller(int images, int seed)
        : images_(images),
          input_(images * kInputs * kSize * kSize),
          pooled_(images * kOutputs * kHalf * kHalf),
          means_(images * kOutputs) {
        for (size_t i = 0; i < input_.size(); i++) input_[i] = number((int)i + seed);
        for (int image = 0; image < images; image++)
            for (int out = 0; out < kOutputs; out++) answer(image, out);
    }

    void call(fr_plan *alone, fr_plan *together, int threads) {
        std::vector<float> pooled(pooled_.size(), NAN), means(means_.size(), NAN);
        const fr_outside input = dense(input_.data(), kInputs, kSize);
        const fr_outside outputs[] = {dense(pooled.data(), kOutputs, kHalf),
                                      dense(means.data(), kOutputs, 1)};
        int64_t times[16] = {};
        require(fr_run(alone, together, threads, &input, 1, outputs, 2, times) == 0,
                "it did not run");
        require(near(pooled, pooled_), "the pooling is wrong");
        require(near(means, means_), "the means are wrong");
    }

private:
    static fr_outside dense(float *data, int channels, int size) {
        const int64_t image = (int64_t)channels * size * size;
        return {data, image * 4, {image, (int64_t)size * size, size, 1}};
    }

    static bool near(const std::vector<float> &got, const std::vector<float> &wanted) {
        for (size_t i = 0; i < got.size(); i++)
            if (!(std::fabs(got[i] - wanted[i]) <= 1e-4f)) return false;  // NaN is not near
        return true;
    }

    void answer(int image, int out) {
        double sum_of_all = 0;
        for (int y = 0; y < kHalf; y++)
            for (int x = 0; x < kHalf; x++) {
                double best = 0;  // after a ReLU
                for (int i = 0; i < 4; i++)
                    best = std::fmax(best, convolution(image, out, 2 * y + i / 2, 2 * x + i % 2));
                pooled_[((image * kOutputs + out) * kHalf + y) * kHalf + x] = (float)(2 * best);
                sum_of_all += best;
            }
        means_[image * kOutputs + out] = (float)(sum_of_all / (kHalf * kHalf));
    }

    double convolution(int image, int out, int y, int x) const {
        double sum = number(out);
        for (int in = 0; in < kInputs; in++)
            for (int tap = 0; tap < 9; tap++) {
                const int row = y + tap / 3 - 1, column = x + tap % 3 - 1;
                if (row < 0 || row >= kSize || column < 0 || column >= kSize) continue;
                sum += (double)Network::weight(out, in, tap) *
                       input_[((image * kInputs + in) * kSize + row) * kSize + column];
            }
        return sum;
    }

    int images_;
    std::vector<float> input_, pooled_, means_;
};

}  // namespace

// Arguments: the instruction set (fr_isa), and how often each caller calls.
int main(int count, char **arguments) {
    require(count == 3, "usage: threads ISA ROUNDS");
    const int isa = std::atoi(arguments[1]), rounds = std::atoi(arguments[2]);
    if (!(fr_isas() >> isa & 1)) return 77;  // not on this processor

    const Network five(5, isa), one(1, isa), three(3, isa);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; caller++)
        callers.emplace_back([&, caller] {
            Caller together(5, caller), by_images(3 * 1 + 3, caller), single(1, caller);
            for (int round = 0; round < rounds; round++) {
                together.call(nullptr, five.plan(), 1 + (caller + round) % 3);
                by_images.call(one.plan(), three.plan(), 3);
                single.call(one.plan(), nullptr, 1);
                Network own(1, isa);  // made and given up while others run
                single.call(nullptr, own.plan(), 2);
            }
        });
    for (auto &caller : callers) caller.join();
    std::puts("done");
    return 0;
}

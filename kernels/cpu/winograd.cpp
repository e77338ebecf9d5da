// 3x3 convolutions of stride 1 with 2.25 times fewer multiplications: Winograd's F(2x2, 3x3).
//
// With d a 4x4 tile of the image, g the filter:  Y = A'[(G g G') * (B' d B)]A   (Lavin and Gray,
// "Fast Algorithms for Convolutional Neural Networks", 2015). G g G' is made in float64 when the
// plan is. For a block of tiles the 16 products are 16 matrix products over the channels, by the
// tiles of every other convolution. Numbers grow fourfold at most on the way, and sums are nine
// times shorter than the direct convolution's, so that the error is about that of the direct one.

#include <algorithm>

#include "plan.h"
#include "target.h"

#ifdef FR_X86

namespace fastres {
namespace {

constexpr int kFrequencies = 16;

struct Block {
    int tiles_high, tiles_wide;
    int64_t first, end;  // tiles
    int channel_blocks;
    char *transformed;  // [frequency][channel block][tile] lines
    char *products;     // [frequency][half of a panel][tile] lines
};

int high(const fr_op &op) { return (op.output.height + 1) / 2; }
int wide(const fr_op &op) { return (op.output.width + 1) / 2; }

Block block_of(const Work &work, int64_t index) {
    const fr_op &op = *work.op;
    Block b;
    b.tiles_high = high(op);
    b.tiles_wide = wide(op);
    const int64_t tiles = (int64_t)work.images * b.tiles_high * b.tiles_wide;
    b.first = index * op.group;
    b.end = std::min<int64_t>(b.first + op.group, tiles);
    b.channel_blocks = (op.input.channels + 15) / 16;
    b.transformed = work.data->arena + op.scratch_offset + work.thread * op.scratch_bytes;
    b.products = b.transformed + (int64_t)kFrequencies * b.channel_blocks * op.group * 64;
    return b;
}

FR_WITH_AVX512 FR_INLINE void to_frequencies(__m512 &a, __m512 &b, __m512 &c, __m512 &d) {
    const __m512 first = _mm512_sub_ps(a, c), second = _mm512_add_ps(b, c);
    const __m512 third = _mm512_sub_ps(c, b), fourth = _mm512_sub_ps(b, d);
    a = first, b = second, c = third, d = fourth;
}

// B' d B for every tile of the block.
FR_WITH_AVX512 void transform(const Work &work, const Block &b) {
    const fr_op &op = *work.op;
    const char *input = work.at(op.input) - op.input.row - op.input.pixel;  // padded by one
    const int64_t count = b.end - b.first;
    const int64_t frequency = b.channel_blocks * count * 64;
    for (int64_t tile = 0; tile < count; tile++) {
        const int64_t index = b.first + tile;
        const int64_t image = index / (b.tiles_high * b.tiles_wide);
        const int in_image = (int)(index % (b.tiles_high * b.tiles_wide));
        const char *corner = input + image * op.input.image +
                             (int64_t)(in_image / b.tiles_wide) * 2 * op.input.row +
                             (int64_t)(in_image % b.tiles_wide) * 2 * op.input.pixel;
        char *to = b.transformed + tile * 64;
        for (int block = 0; block < b.channel_blocks; block++) {
            __m512 d[4][4];
#pragma GCC unroll 4
            for (int y = 0; y < 4; y++) {
#pragma GCC unroll 4
                for (int x = 0; x < 4; x++)
                    d[y][x] = _mm512_load_ps(corner + y * op.input.row + x * op.input.pixel);
                to_frequencies(d[y][0], d[y][1], d[y][2], d[y][3]);
            }
#pragma GCC unroll 4
            for (int x = 0; x < 4; x++) {
                to_frequencies(d[0][x], d[1][x], d[2][x], d[3][x]);
#pragma GCC unroll 4
                for (int y = 0; y < 4; y++) _mm512_store_ps(to + (y * 4 + x) * frequency, d[y][x]);
            }
            corner += op.input.plane;
            to += count * 64;
        }
    }
}

FR_WITH_AVX512 FR_INLINE __m512 activate(__m512 x, int kind) {
    const __m512 zero = _mm512_setzero_ps(), six = _mm512_set1_ps(6.0f);
    switch (kind) {
        case FR_RELU: return _mm512_max_ps(zero, x);
        case FR_RELU6: return _mm512_min_ps(six, _mm512_max_ps(zero, x));
        case FR_HARDSWISH: {
            const __m512 gate = _mm512_add_ps(x, _mm512_set1_ps(3.0f));
            const __m512 bounded = _mm512_min_ps(six, _mm512_max_ps(zero, gate));
            return _mm512_div_ps(_mm512_mul_ps(x, bounded), six);
        }
        default: return x;
    }
}

// A' m A, bias, residual and activations for every tile of the block, one panel.
FR_WITH_AVX512 void finish(const Work &work, const Block &b, int panel) {
    const fr_op &op = *work.op;
    const int64_t count = b.end - b.first;
    for (int half = 0; half < 2; half++) {
        const int channels = op.output.channels - panel * 32 - half * 16;
        if (channels <= 0) return;
        const __mmask16 lanes = channels >= 16 ? 0xffff : (__mmask16)((1u << channels) - 1);
        const __m512 bias = _mm512_loadu_ps(op.bias + panel * 32 + half * 16);
        char *output = work.at(op.output) + (panel * 2 + half) * op.output.plane;
        const char *residual = op.has_residual
                                   ? work.at(op.residual) + (panel * 2 + half) * op.residual.plane
                                   : nullptr;
        for (int64_t tile = 0; tile < count; tile++) {
            const char *from = b.products + half * count * 64 + tile * 64;
            __m512 rows[2][4];
#pragma GCC unroll 4
            for (int x = 0; x < 4; x++) {
                __m512 m[4];
#pragma GCC unroll 4
                for (int y = 0; y < 4; y++) m[y] = _mm512_load_ps(from + (y * 4 + x) * count * 128);
                rows[0][x] = _mm512_add_ps(_mm512_add_ps(m[0], m[1]), m[2]);
                rows[1][x] = _mm512_sub_ps(_mm512_sub_ps(m[1], m[2]), m[3]);
            }
            const int64_t index = b.first + tile;
            const int64_t image = index / (b.tiles_high * b.tiles_wide);
            const int in_image = (int)(index % (b.tiles_high * b.tiles_wide));
            const int row = in_image / b.tiles_wide * 2, column = in_image % b.tiles_wide * 2;
#pragma GCC unroll 2
            for (int y = 0; y < 2; y++) {
                const __m512 *m = rows[y];
                const __m512 pair[2] = {
                    _mm512_add_ps(_mm512_add_ps(m[0], m[1]), _mm512_add_ps(m[2], bias)),
                    _mm512_add_ps(_mm512_sub_ps(m[1], m[2]), _mm512_sub_ps(bias, m[3]))};
                if (row + y >= op.output.height) continue;
#pragma GCC unroll 2
                for (int x = 0; x < 2; x++) {
                    if (column + x >= op.output.width) continue;
                    __m512 value = activate(pair[x], op.before);
                    if (residual)
                        value = _mm512_add_ps(value,
                                              _mm512_load_ps(residual + image * op.residual.image +
                                                             (row + y) * op.residual.row +
                                                             (column + x) * op.residual.pixel));
                    value = _mm512_maskz_mov_ps(lanes, activate(value, op.after));
                    _mm512_store_ps(output + image * op.output.image + (row + y) * op.output.row +
                                        (column + x) * op.output.pixel,
                                    value);
                }
            }
        }
    }
}

// The offsets of tiles that lie side by side.
const int32_t kSideBySide[kMostPixels] = {0,   16,  32,  48,  64,  80,  96,
                                          112, 128, 144, 160, 176, 192, 208};
alignas(64) const float kNothing[32] = {};

}  // namespace

int64_t winograd_chunks(const Work &work) {
    const fr_op &op = *work.op;
    const int64_t tiles = (int64_t)work.images * high(op) * wide(op);
    const int64_t panel_chunks = (op.panels + op.chunk_panels - 1) / op.chunk_panels;
    return (tiles + op.group - 1) / op.group * panel_chunks;
}

void winograd_chunk(const Work &work, int64_t chunk) {
    const fr_op &op = *work.op;
    const int panel_chunks = (op.panels + op.chunk_panels - 1) / op.chunk_panels;
    const Block b = block_of(work, chunk / panel_chunks);
    const int first_panel = (int)(chunk % panel_chunks) * op.chunk_panels;
    const int end_panel = std::min(first_panel + op.chunk_panels, op.panels);
    const int64_t count = b.end - b.first;
    const int64_t parts = (count + op.tile - 1) / op.tile;
    const int smaller = (int)(count / parts);
    const TileFunction functions[2] = {
        avx512_float32(smaller, 16), smaller < op.tile ? avx512_float32(smaller + 1, 16) : nullptr};
    transform(work, b);
    // Steps go from one channel block to the next; a plan for a part of the last block has its own.
    int32_t steps[kMostSteps];
    for (int i = 0; i < b.channel_blocks; i++) steps[i] = (int32_t)(i * count * 16);
    Tile tile{};
    tile.input_px = tile.output_px = kSideBySide;
    tile.steps = steps;
    tile.step_count = b.channel_blocks;
    tile.step_units = 16;
    tile.bias = kNothing;
    tile.output_plane = count * 64;
    tile.channels = 32;
    const int64_t matrix = (int64_t)b.channel_blocks * 16 * 128;  // bytes of a frequency's weights
    for (int panel = first_panel; panel < end_panel; panel++) {
        const char *weights = (const char *)op.weights + panel * op.panel_bytes;
        const char *ahead =
            op.prefetch && panel + 1 < op.panels ? weights + op.panel_bytes : nullptr;
        tile.ahead_lines = ahead ? (int)((32 + parts - 1) / parts) : 0;
        for (int f = 0; f < kFrequencies; f++) {
            tile.weights = weights + f * matrix;
            const char *read = ahead ? ahead + f * matrix : nullptr;
            for (int64_t part = 0; part < parts; part++) {
                const int64_t begin = part * count / parts, end = (part + 1) * count / parts;
                tile.input = b.transformed + (f * b.channel_blocks * count + begin) * 64;
                tile.output = b.products + (f * 2 * count + begin) * 64;
                tile.ahead = read;
                functions[end - begin - smaller](tile);
                if (read) read += (int64_t)tile.ahead_lines * b.channel_blocks * 64;
            }
        }
        finish(work, b, panel);
    }
}

}  // namespace fastres

#endif

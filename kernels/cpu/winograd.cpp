// 3x3 convolutions of stride 1 with 2.25 times fewer multiplications: Winograd's F(2x2, 3x3).
//
// With d a 4x4 tile of the image, g the filter:  Y = A'[(G g G') * (B' d B)]A   (Lavin and Gray,
// "Fast Algorithms for Convolutional Neural Networks", 2015). G g G' is made in float64 when the
// plan is. For a block of tiles the 16 products are 16 matrix products over the channels, by the
// tiles of every other convolution. Numbers grow fourfold at most on the way, and sums are nine
// times shorter than the direct convolution's, so that the error is about that of the direct one.
// In bfloat16 the transforms compute in float32; what they give is rounded once more than in the
// direct convolution.

#include <algorithm>

#include "plan.h"
#include "target.h"
#if defined(FR_X86)
#include "finish_avx512.h"
#define FR_WINOGRAD FR_WITH_AVX512_BF16
#elif defined(FR_ARM)
#include "finish_neon.h"
#define FR_WINOGRAD
#endif

#ifdef FR_KERNELS

namespace fastres {
namespace {

constexpr int kFrequencies = 16;

struct Block {
    int tiles_high, tiles_wide;
    int64_t first, end;  // tiles
    int channel_blocks;
    char *transformed;  // [frequency][channel block][tile] lines
    char *products;     // [frequency][half of a panel][tile] lines of float32
    int32_t *steps;     // from one channel block to the next, in units of 4 bytes
};

int high(const fr_op &op) { return (op.output.height + 1) / 2; }
int wide(const fr_op &op) { return (op.output.width + 1) / 2; }

Block block_of(const Work &work, int64_t index) {
    const fr_op &op = *work.op;
    const int lanes = op.dtype == FR_BFLOAT16 ? 32 : 16;
    Block b;
    b.tiles_high = high(op);
    b.tiles_wide = wide(op);
    const int64_t tiles = (int64_t)work.images * b.tiles_high * b.tiles_wide;
    b.first = index * op.group;
    b.end = std::min<int64_t>(b.first + op.group, tiles);
    b.channel_blocks = (op.input.channels + lanes - 1) / lanes;
    b.transformed = work.data->arena + op.scratch_offset + work.thread * op.scratch_bytes;
    b.products = b.transformed + (int64_t)kFrequencies * b.channel_blocks * op.group * 64;
    b.steps = (int32_t *)(b.products + (int64_t)kFrequencies * 2 * op.group * 64);
    return b;
}

// Goes from tile to tile of a block.
struct Cursor {
    const Block &b;
    int64_t image;
    int row, column;  // of tiles

    explicit Cursor(const Block &block) : b(block) {
        const int64_t in_image = b.first % ((int64_t)b.tiles_high * b.tiles_wide);
        image = b.first / ((int64_t)b.tiles_high * b.tiles_wide);
        row = (int)(in_image / b.tiles_wide);
        column = (int)(in_image % b.tiles_wide);
    }

    void next() {
        if (++column < b.tiles_wide) return;
        column = 0;
        if (++row < b.tiles_high) return;
        row = 0;
        image++;
    }

    // Bytes to the tile's first output pixel.
    int64_t offset(const fr_tensor &tensor) const {
        return image * tensor.image + 2 * (row * tensor.row + column * tensor.pixel);
    }
};

FR_WINOGRAD FR_INLINE void to_frequencies(Sixteen &a, Sixteen &b, Sixteen &c, Sixteen &d) {
    const Sixteen first = a - c, second = b + c, third = c - b, fourth = b - d;
    a = first, b = second, c = third, d = fourth;
}

// B' d B for every tile of the block.
template <class T>
FR_WINOGRAD void transform(const Work &work, const Block &b) {
    const fr_op &op = *work.op;
    const char *input = work.at(op.input) - op.input.row - op.input.pixel;  // padded by one
    const int64_t count = b.end - b.first;
    const int64_t frequency = b.channel_blocks * count * 64;
    constexpr int kStep = T::stored == FR_FLOAT32 ? 64 : 32;
    Cursor cursor(b);
    for (int64_t tile = 0; tile < count; tile++, cursor.next()) {
        const char *corner = input + cursor.offset(op.input);
        char *to = b.transformed + tile * 64;
        for (int block = 0; block < b.channel_blocks; block++) {
            for (int byte = 0; byte < 64; byte += kStep) {
                Sixteen d[4][4];
#pragma GCC unroll 4
                for (int y = 0; y < 4; y++) {
#pragma GCC unroll 4
                    for (int x = 0; x < 4; x++)
                        d[y][x] =
                            load_sixteen<T>(corner + y * op.input.row + x * op.input.pixel + byte);
                    to_frequencies(d[y][0], d[y][1], d[y][2], d[y][3]);
                }
#pragma GCC unroll 4
                for (int x = 0; x < 4; x++) {
                    to_frequencies(d[0][x], d[1][x], d[2][x], d[3][x]);
#pragma GCC unroll 4
                    for (int y = 0; y < 4; y++)
                        store_sixteen<T>(to + (y * 4 + x) * frequency + byte, d[y][x]);
                }
            }
            corner += op.input.plane;
            to += count * 64;
        }
    }
}

// A' m A for 16 channels of a tile, with the bias.
FR_WINOGRAD FR_INLINE void to_pixels(const char *from, int64_t frequency, Sixteen bias,
                                     Sixteen (&pixels)[2][2]) {
    Sixteen rows[2][4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; x++) {
        Sixteen m[4];
#pragma GCC unroll 4
        for (int y = 0; y < 4; y++) m[y] = load_sixteen<Float32>(from + (y * 4 + x) * frequency);
        rows[0][x] = m[0] + m[1] + m[2];
        rows[1][x] = m[1] - m[2] - m[3];
    }
#pragma GCC unroll 2
    for (int y = 0; y < 2; y++) {
        const Sixteen *m = rows[y];
        pixels[y][0] = (m[0] + m[1]) + (m[2] + bias);
        pixels[y][1] = (m[1] - m[2]) + (bias - m[3]);
    }
}

const int32_t kHere[1] = {0};

// From products to output pixels, for every tile of the block, one panel.
template <class T>
FR_WINOGRAD void finish(const Work &work, const Block &b, int panel) {
    const fr_op &op = *work.op;
    constexpr int kBlocks = T::stored == FR_FLOAT32 ? 2 : 1;  // lines of a panel's pixel
    const int64_t count = b.end - b.first;
    Tile t{};
    t.output_px = t.residual_px = kHere;
    t.output_plane = op.output.plane;
    t.residual_plane = op.residual.plane;
    t.channels = std::min(32, op.output.channels - panel * 32);
    t.before = op.before;
    t.after = op.after;
    t.slopes = op.slopes ? op.slopes + panel * 32 : nullptr;
    const Ending<T> ending(t);
    const float *own = (const float *)op.bias + panel * 32;
    const Sixteen bias[2] = {any_sixteen(own), any_sixteen(own + 16)};
    char *output = work.at(op.output) + panel * kBlocks * op.output.plane;
    const char *residual =
        op.has_residual ? work.at(op.residual) + panel * kBlocks * op.residual.plane : nullptr;
    Cursor cursor(b);
    for (int64_t tile = 0; tile < count; tile++, cursor.next()) {
        Sixteen low[2][2], high[2][2];
        const char *from = b.products + tile * 64;
        to_pixels(from, count * 128, bias[0], low);
        to_pixels(from + count * 64, count * 128, bias[1], high);
        char *to = output + cursor.offset(op.output);
        const char *addend = residual ? residual + cursor.offset(op.residual) : nullptr;
#pragma GCC unroll 2
        for (int y = 0; y < 2; y++) {
            if (cursor.row * 2 + y >= op.output.height) continue;
#pragma GCC unroll 2
            for (int x = 0; x < 2; x++) {
                if (cursor.column * 2 + x >= op.output.width) continue;
                t.output = to + y * op.output.row + x * op.output.pixel;
                t.residual =
                    addend ? addend + y * op.residual.row + x * op.residual.pixel : nullptr;
                ending.finish(t, low[y][x], high[y][x]);
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
    const bool half = op.dtype == FR_BFLOAT16;
    const auto function = [&](int pixels) {
#ifdef FR_X86
        return half ? avx512_bfloat16_sums(pixels) : avx512_float32(pixels, 16);
#else
        return half ? neon_bfloat16_sums(pixels) : neon_tile(FR_FLOAT32, FR_PANELS, pixels, 16);
#endif
    };
    const TileFunction functions[2] = {function(smaller),
                                       smaller < op.tile ? function(smaller + 1) : nullptr};
    half ? transform<Bfloat16>(work, b) : transform<Float32>(work, b);
    for (int i = 0; i < b.channel_blocks; i++) b.steps[i] = (int32_t)(i * count * 16);
    Tile tile{};
    tile.input_px = tile.output_px = kSideBySide;
    tile.steps = b.steps;
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
        half ? finish<Bfloat16>(work, b, panel) : finish<Float32>(work, b, panel);
    }
}

}  // namespace fastres

#endif

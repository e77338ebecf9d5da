// The plain C interface of the CPU engine: what a plan consists of, and the calls on it.
//
// Activations lie in "lines" of 64 bytes: one pixel of 16 float32, 32 bfloat16 or 64 uint8
// channels. A tensor is [image][channel block][row][column] lines, with a border of zeros where a
// convolution pads, so that no kernel asks where the border is. An image of few channels (what a
// stem reads) is [image][row][column][channel] numbers instead, bordered likewise.
//
// uint8 stands for quantised numbers, `(q - zero) * scale` each, and their border holds `zero`: see
// fastres/kernels/quantized.py, whose integers the kernels give bit for bit.
//
// A convolution is a list of K-steps: each step reads `step_units` consecutive units of 4 bytes (a
// float32, two bfloat16 or four uint8) at every pixel's address plus the step's offset, and as many
// rows of the weight panel. A filter tap of a channel block is one step, so that strides, dilation,
// padding and groups are nothing but offsets. A panel holds the weights of 32 output channels,
// [step][unit][32].
//
// That is wasteful where a panel's channels read few of a line's: see fr_form for two other ways.
//
// Kernels neither allocate nor throw nor check sizes: Python makes and checks the plan.

#ifndef FASTRES_NATIVE_H
#define FASTRES_NATIVE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define FR_API __declspec(dllexport)
#else
#define FR_API __attribute__((visibility("default")))
#endif

#define FR_ABI 11  // changes with every change of this file

enum fr_isa {
    FR_AVX2 = 0,
    FR_AVX_VNNI = 1,
    FR_AVX512 = 2,
    FR_AVX512_VNNI = 3,
    FR_AVX512_BF16 = 4,
    FR_AMX_BF16 = 5,
    FR_AMX_INT8 = 6,
    FR_NEON = 7,
    FR_NEON_BF16 = 8,
    FR_NEON_I8MM = 9
};
enum fr_dtype { FR_FLOAT32 = 0, FR_BFLOAT16 = 1, FR_UINT8 = 2 };
enum fr_kind {
    FR_CONVOLUTION = 0,
    FR_WINOGRAD = 1,
    FR_MAX_POOL = 2,
    FR_MEAN = 3,
    FR_IMPORT = 4,
    FR_EXPORT = 5,
    FR_MAP = 6,
    FR_AVG_POOL = 7,
    FR_GATHER = 8,
    FR_RESIZE = 9,
    FR_CHANNEL_CONVOLUTION = 10,
    FR_CONVERT = 11,
    FR_GROUP_NORM = 12,
    FR_LAYER_NORM = 13
};
enum fr_activation {
    FR_NONE = 0,
    FR_RELU = 1,
    FR_RELU6 = 2,
    FR_HARDSWISH = 3,
    FR_SILU = 4,
    FR_SIGMOID = 5,
    FR_HARDSIGMOID = 6,
    FR_GELU = 7,
    FR_GELU_TANH = 8,
    FR_TANH = 9,
    FR_LEAKY_RELU = 10,  // values: slope
    FR_PRELU = 11,       // a slope for each channel
    FR_ELU = 12,         // values: alpha, and what all is multiplied by
    FR_MISH = 13,
    FR_CLAMP = 14  // values: least and most
};
// How a convolution multiplies.
//
// FR_PANELS: as above; of groups, the weights between one and another are zeros.
//
// FR_DEPTHWISE: each channel by itself, channel k of the output from channel k of the input. A
// K-step is one filter tap of float32, two of bfloat16 or four of uint8, a number of each in a
// channel's unit, and has as many entries in `steps`. Weights are [panel][step][32] units, the 32
// channels in the order into which the kernels' interleaving brings them: see pack.py.
//
// FR_GROUPED: a vector of 16 output channels (AVX2: 8, NEON: 4) at a time, each lane from the units
// that its group reads. A vector reads `reads` divided by its panel's vectors lines (AVX2: halves
// of lines, NEON: quarters), at the offsets that `panel_input` has for each, [panel][vector][read].
// Of each line it takes `step_units` units: permuted so that every lane has one that it multiplies,
// for each filter tap, which is a step. Weights are [panel][vector][read] of the permutations'
// indices, [unit][lane] int32, and then [step][unit][lane] units.
enum fr_form { FR_PANELS = 0, FR_DEPTHWISE = 1, FR_GROUPED = 2 };
enum fr_space { FR_ARENA = 0, FR_INPUT = 1, FR_OUTPUT = 2 };

// Where a tensor's first pixel inside the border lies.
typedef struct {
    int64_t offset;  // bytes from the start of the space
    int64_t image;   // bytes from one image to the next
    int64_t plane;   // bytes from one channel block to the next
    int64_t row;     // bytes from one row to the next
    int64_t pixel;   // bytes from one column to the next
    int32_t space;   // fr_space
    int32_t index;   // which input or output
    int32_t whole;   // 1: holds all images of the plan; 0: those of one sub-batch
    int32_t channels;
    int32_t height;
    int32_t width;
} fr_tensor;

typedef struct {
    int32_t kind;  // fr_activation
    float values[2];
} fr_function;

typedef struct {
    int32_t kind;    // fr_kind
    int32_t isa;     // fr_isa
    int32_t dtype;   // fr_dtype of the activations
    int32_t images;  // of one sub-batch: the tables are made for as many
    fr_tensor input, output, residual;
    fr_function before, after;  // in front of the residual and behind it
    const float *slopes;        // per channel in whole panels, for FR_PRELU
    int32_t has_residual;
    // Convolution: 1 where the output is [image][channel] float32 in the caller's memory.
    int32_t rows;

    // FR_CONVOLUTION. Offsets in units of 4 bytes from the tensor's first pixel of the sub-batch.
    const int32_t *input_px, *output_px, *residual_px;  // per output pixel, image by image
    const int32_t *steps;        // per K-step; FR_DEPTHWISE: per filter tap of one
    const int32_t *panel_input;  // per panel, or read, added to the step; or NULL
    const void *weights;
    const void *bias;  // 32 per panel: float32, or to uint8 int32 with the input's zero taken away
    int64_t panel_bytes;
    int32_t pixels;  // output pixels of one image
    int32_t step_count, step_units;
    int32_t panels;
    int32_t tile;          // most pixels that a tile has
    int32_t group;         // tiles that a chunk goes through for each panel
    int32_t chunk_panels;  // panels of a chunk
    int32_t prefetch;      // 1: read ahead the next panel's weights
    int32_t read_ahead;    // 1: read ahead the next tile's pixels
    // FR_AMX_*: bytes from a pixel to the next in a run of 16, else 0. Two runs are a tile:
    // their inputs begin at input_px[0] and input_px[16]. -1 in output_px marks a pixel that there
    // is not; its input is read nevertheless. `pixels` is a multiple of `tile`, which is 32.
    int32_t row_step;
    int32_t form;   // fr_form
    int32_t reads;  // FR_GROUPED: of a panel, else 0

    // FR_WINOGRAD, F(2x2, 3x3): weights [panel][frequency 16][channel][32], `group` output tiles of
    // 2x2 pixels in a chunk, and room in the arena for each thread: 16 lines per tile for each
    // channel block and for two more, and 4 bytes per channel block.
    int64_t scratch_offset, scratch_bytes;

    // FR_MAX_POOL, FR_AVG_POOL: rows, columns. FR_CHANNEL_CONVOLUTION: kernel[0] weights, the same
    // for all channels, and padding[0].
    int32_t kernel[2], stride[2], padding[2], dilation[2];
    // FR_AVG_POOL. What sums are divided by: a number, or 0 for how many pixels a window has, with
    // those of the padding where `counts_padding`. `adaptive`: windows cut the image evenly, and
    // have no kernel, stride and padding.
    int32_t divisor, counts_padding, adaptive;

    // FR_MAP: after(before(input * scale + shift) * factor + residual * residual_multiplier); of
    // uint8 a sum, see below. Per channel in whole lines of float32, or NULL. A factor or residual
    // of one row, one column or one channel stands for all of them.
    const float *scale, *shift;
    fr_tensor factor;
    int32_t has_factor;

    // FR_GROUP_NORM: after((input - mean) / sqrt(variance + epsilon) * scale + shift), mean and
    // variance of an image's `groups` groups of channels. Its scratch memory, in the fields of
    // FR_WINOGRAD, has two numbers of float32 for each channel, in whole lines.
    // FR_LAYER_NORM: the same with the mean and variance of each pixel's channels.
    int32_t groups;
    float epsilon;

    // FR_GATHER: copies of channels: (offset in the input's pixel, offset in the output's, bytes),
    // each within a line.
    const int32_t *copies;
    int32_t copy_count;

    // FR_RESIZE: for every output row two input rows and the second one's share of it, and for
    // columns likewise; no shares: the first alone, or zeros where it is -1.
    const int32_t *source_rows, *source_columns;
    const float *row_shares, *column_shares;

    // FR_IMPORT, FR_EXPORT; of FR_CONVERT the output's.
    int32_t outside_dtype;  // fr_dtype of the caller's tensor; quantised only if the inside is
    int32_t small;          // 1: the inside is [row][column][channel], not lines

    // FR_UINT8. What a sum of products, or a summand less its zero, is multiplied by; and then what
    // the activation gives, before it is rounded: 1 where it is in the output's unit already.
    const float *multiplier;  // 32 per panel
    float input_multiplier, residual_multiplier, output_multiplier;
    float outside_scale;  // FR_IMPORT, FR_EXPORT: of the inside's numbers
    int32_t input_zero, residual_zero, output_zero;
} fr_op;

typedef struct {
    int32_t first, count;  // ops
    int32_t images;        // of a sub-batch
} fr_phase;

// A tensor of the caller's: [image][channel][row][column] with any strides, in elements.
typedef struct {
    void *data;
    int64_t image_bytes;
    int64_t strides[4];
} fr_outside;

typedef struct fr_plan fr_plan;

FR_API int32_t fr_abi(void);
FR_API int64_t fr_op_bytes(void);
// Bit i is set where the processor and the system allow fr_isa i.
FR_API uint32_t fr_isas(void);
// From now on threads are those of an OpenMP runtime in the process: its GOMP_parallel,
// omp_get_thread_num and omp_get_num_threads. Without this call they are the library's own.
FR_API void fr_use_openmp(void *parallel, void *thread, void *count);
// Copies ops and phases; tables and weights stay the caller's and must outlive the plan.
// `arena_bytes` of zeroed memory are taken per concurrent run. `guards` are (offset, bytes) pairs
// of pages that nobody may touch. NULL where memory is short.
FR_API fr_plan *fr_plan_create(const fr_op *ops, int32_t op_count, const fr_phase *phases,
                               int32_t phase_count, int32_t images, int64_t arena_bytes,
                               const int64_t *guards, int32_t guard_count);
// From now on arenas hold `byte` in `bytes` at `offset` from the start, not zeros. For borders of
// quantised tensors. Before the plan's first run. 0: done; 1: no memory.
FR_API int32_t fr_plan_fill(fr_plan *plan, int64_t offset, int64_t bytes, int32_t byte);
FR_API void fr_plan_destroy(fr_plan *plan);
// The number of the first op that would touch memory outside the plan's arena, or is in a phase for
// another number of images; of as many ops as there are where a phase has others; -1 where all is
// well. Kernels check nothing, so a plan is looked at once.
FR_API int32_t fr_plan_check(const fr_plan *plan);
// From now on a run gives `bytes` of its arena at `offset`, both multiples of the page size, back
// to the system as soon as `op` has run for the last time; they are zero again, and filled again
// before another run. For plans whose arenas are not kept between runs anyway. 0: done; 1: no
// memory, or no such op or bytes.
FR_API int32_t fr_plan_release(fr_plan *plan, int32_t op, int64_t offset, int64_t bytes);
// Arenas that no run works in are kept for the next one of their plan, of all plans together no
// more bytes than this; beyond it those go back to the system that were used longest ago.
FR_API void fr_keep(int64_t bytes);
// Gives all of them back to the system now. How many bytes they had.
FR_API int64_t fr_let_go(void);
// Fills the arenas with `byte`, borders excepted, so that what is read unwritten shows (for tests).
FR_API int32_t fr_plan_poison(fr_plan *plan, const int64_t *ranges, int32_t range_count,
                              int32_t byte);

// Runs `alone` (or NULL) on every thread by itself, thread t on the images [t * n, (t + 1) * n)
// with n the images of that plan; then `together` (or NULL) on the images behind them with all
// threads. `times` gets nanoseconds per op of the plan that runs (thread 0's for `alone`), or is
// NULL. 0: done; 1: no memory for an arena; 2: the system refused a thread; 3: done, but a number
// that came in or went out is not below 2^64 in magnitude, and the kernels make nothing sensible of
// such.
FR_API int32_t fr_run(fr_plan *alone, fr_plan *together, int32_t threads, const fr_outside *inputs,
                      int32_t input_count, const fr_outside *outputs, int32_t output_count,
                      int64_t *times);

// Multiply-adds per second of all threads together that do nothing else, in registers, for so many
// milliseconds, with the best instructions that kernels use for numbers of that fr_dtype in that
// fr_isa. 0 where there are no such kernels, the processor has no such instructions or the system
// refuses a thread.
FR_API double fr_peak(int32_t isa, int32_t dtype, int32_t threads, int32_t milliseconds);

#ifdef __cplusplus
}
#endif
#endif

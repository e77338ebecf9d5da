// The plain C interface of the CPU engine: what a plan consists of, and the calls on it.
//
// Activations lie in "lines" of 64 bytes: one pixel of 16 float32 or 32 bfloat16 channels. A tensor
// is [image][channel block][row][column] lines, with a border of zeros where a convolution pads, so
// that no kernel asks where the border is. An image of few channels (what a stem reads) is
// [image][row][column][channel] numbers instead, bordered likewise.
//
// A convolution is a list of K-steps: each step reads `step_units` consecutive units of 4 bytes (a
// float32, or two bfloat16) at every pixel's address plus the step's offset, and as many rows of
// the weight panel. A filter tap of a channel block is one step, so that strides, dilation, padding
// and groups are nothing but offsets. A panel holds the weights of 32 output channels,
// [step][unit][32].
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

#define FR_ABI 6  // changes with every change of this file

enum fr_isa { FR_AVX2 = 0, FR_AVX512 = 1, FR_AVX512_BF16 = 2, FR_AMX_BF16 = 3 };
enum fr_dtype { FR_FLOAT32 = 0, FR_BFLOAT16 = 1 };
enum fr_kind {
    FR_CONVOLUTION = 0,
    FR_WINOGRAD = 1,
    FR_MAX_POOL = 2,
    FR_MEAN = 3,
    FR_IMPORT = 4,
    FR_EXPORT = 5,
    FR_ADD = 6
};
enum fr_activation { FR_NONE = 0, FR_RELU = 1, FR_RELU6 = 2, FR_HARDSWISH = 3 };
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
    int32_t kind;    // fr_kind
    int32_t isa;     // fr_isa
    int32_t dtype;   // fr_dtype of the activations
    int32_t images;  // of one sub-batch: the tables are made for as many
    fr_tensor input, output, residual;
    int32_t before, after;  // fr_activation before and after the residual
    int32_t has_residual;
    // Convolution: 1 where the output is [image][channel] float32 in the caller's memory.
    int32_t rows;

    // FR_CONVOLUTION. Offsets in units of 4 bytes from the tensor's first pixel of the sub-batch.
    const int32_t *input_px, *output_px, *residual_px;  // per output pixel, image by image
    const int32_t *steps;                               // per K-step
    const int32_t *panel_input;                         // per panel, added to the step; or NULL
    const void *weights;
    const float *bias;  // 32 per panel
    int64_t panel_bytes;
    int32_t pixels;  // output pixels of one image
    int32_t step_count, step_units;
    int32_t panels;
    int32_t tile;          // most pixels that a tile has
    int32_t group;         // tiles that a chunk goes through for each panel
    int32_t chunk_panels;  // panels of a chunk
    int32_t prefetch;      // 1: read ahead the next panel's weights
    int32_t read_ahead;    // 1: read ahead the next tile's pixels
    // FR_AMX_BF16: bytes from a pixel to the next in a run of 16, else 0. Two runs are a tile:
    // their inputs begin at input_px[0] and input_px[16]. -1 in output_px marks a pixel that there
    // is not; its input is read nevertheless. `pixels` is a multiple of `tile`, which is 32.
    int32_t row_step;

    // FR_WINOGRAD, F(2x2, 3x3): weights [panel][frequency 16][channel][32], `group` output tiles of
    // 2x2 pixels in a chunk, and room in the arena for each thread: 16 lines per tile for each
    // channel block and for two more, and 4 bytes per channel block.
    int64_t scratch_offset, scratch_bytes;

    // FR_MAX_POOL: rows, columns.
    int32_t kernel[2], stride[2], padding[2], dilation[2];

    // FR_IMPORT, FR_EXPORT.
    int32_t outside_dtype;  // fr_dtype of the caller's tensor
    int32_t small;          // 1: the inside is [row][column][channel], not lines
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
FR_API void fr_plan_destroy(fr_plan *plan);
// The number of the first op that would touch memory outside the plan's arena, or is in a phase for
// another number of images; of as many ops as there are where a phase has others; -1 where all is
// well. Kernels check nothing, so a plan is looked at once.
FR_API int32_t fr_plan_check(const fr_plan *plan);
// From now on a run gives `bytes` of its arena at `offset`, both multiples of the page size, back
// to the system as soon as `op` has run for the last time; they are zero again. For plans whose
// arenas are not kept between runs anyway. 0: done; 1: no memory, or no such op or bytes.
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
// milliseconds; bfloat16's with FR_AVX512_BF16 and FR_AMX_BF16, else float32's. 0 where the
// processor has no such instructions or the system refuses a thread.
FR_API double fr_peak(int32_t isa, int32_t threads, int32_t milliseconds);

#ifdef __cplusplus
}
#endif
#endif

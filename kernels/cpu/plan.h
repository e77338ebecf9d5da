// A plan in this process: its ops, and the memory for as many runs as there are at once.

#ifndef FASTRES_PLAN_H
#define FASTRES_PLAN_H

#include <atomic>
#include <vector>

#include "native.h"
#include "tile.h"

namespace fastres {

// What one run of a plan works on.
struct Data {
    char *arena;
    const fr_outside *inputs, *outputs;  // at the run's first image
    std::atomic<bool> *unusual;          // set where a number from or for outside is not ordinary
};

// Below 2^64 in magnitude, so neither infinity nor NaN: see fastres/runtime/nonfinite.py.
inline bool is_ordinary(float x) { return x < 0x1p64f && x > -0x1p64f; }

// An op for some images of a run.
struct Work {
    const fr_op *op;
    const fr_op *next;  // the op behind it, for reading ahead; or null
    const Data *data;
    int first, images;
    int thread;

    const fr_outside &outside(const fr_tensor &tensor) const {
        return (tensor.space == FR_INPUT ? data->inputs : data->outputs)[tensor.index];
    }

    // The first pixel of the first of these images.
    char *at(const fr_tensor &tensor) const {
        char *base = tensor.space == FR_ARENA ? data->arena : (char *)outside(tensor).data;
        return base + tensor.offset + (tensor.whole ? (int64_t)first * tensor.image : 0);
    }
};

// Whether an op of a plan for so many images touches no byte outside an arena of so many bytes.
bool stays_inside(const fr_op &op, int images, int64_t arena_bytes);

// Each kind of op counts its chunks for some images, and does one.
int64_t convolution_chunks(const Work &);
void convolution_chunk(const Work &, int64_t chunk);
int64_t winograd_chunks(const Work &);
void winograd_chunk(const Work &, int64_t chunk);
// The channels that one chunk of FR_GROUP_NORM normalises: a group where that is whole lines, a
// line where each channel is a group, else all.
int norm_channels(const fr_op &op);
// Everything else.
int64_t elementwise_chunks(const Work &);
void elementwise_chunk(const Work &, int64_t chunk);
void elementwise_avx2(const Work &, int64_t chunk);
void elementwise_avx512(const Work &, int64_t chunk);
void elementwise_avx512_bf16(const Work &, int64_t chunk);
void elementwise_neon(const Work &, int64_t chunk);

}  // namespace fastres
#endif

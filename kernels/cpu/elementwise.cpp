// How what is not a convolution is cut into chunks, and who does one.

#include "plan.h"
#include "target.h"

namespace fastres {
namespace {

int64_t blocks(const fr_tensor &tensor, int dtype) {
    const int lanes = dtype == FR_BFLOAT16 ? 32 : 16;
    return (tensor.channels + lanes - 1) / lanes;
}

}  // namespace

int64_t elementwise_chunks(const Work &work) {
    const fr_op &op = *work.op;
    switch (op.kind) {
        case FR_MEAN: return work.images * blocks(op.input, op.dtype);
        case FR_IMPORT: return (int64_t)work.images * op.output.height;
        case FR_EXPORT: return (int64_t)work.images * op.input.height;
        default: return work.images * blocks(op.output, op.dtype) * op.output.height;
    }
}

void elementwise_chunk(const Work &work, int64_t chunk) {
#ifdef FR_X86
    if (work.op->isa == FR_AVX2)
        elementwise_avx2(work, chunk);
    else
        elementwise_avx512(work, chunk);
#else
    (void)work, (void)chunk;  // there are no plans without an instruction set
#endif
}

}  // namespace fastres

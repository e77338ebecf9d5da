// How what is not a convolution is cut into chunks, and who does one.

#include "plan.h"
#include "target.h"

namespace fastres {
namespace {

int64_t blocks(const fr_tensor &tensor, int dtype) {
    const int lanes = dtype == FR_FLOAT32 ? 16 : dtype == FR_BFLOAT16 ? 32 : 64;
    return (tensor.channels + lanes - 1) / lanes;
}

}  // namespace

int norm_channels(const fr_op &op) {
    const int lanes = op.dtype == FR_FLOAT32 ? 16 : 32;
    const int per_group = op.output.channels / op.groups;
    if (per_group == 1) return lanes;
    return per_group % lanes == 0 ? per_group : op.output.channels;
}

int64_t elementwise_chunks(const Work &work) {
    const fr_op &op = *work.op;
    switch (op.kind) {
        case FR_GROUP_NORM: {
            const int count = norm_channels(op);
            return (int64_t)work.images * ((op.output.channels + count - 1) / count);
        }
        case FR_MEAN: return work.images * blocks(op.input, op.dtype);
        case FR_LAYER_NORM:
        case FR_IMPORT:
        case FR_CONVERT:
        case FR_GATHER: return (int64_t)work.images * op.output.height;
        case FR_CHANNEL_CONVOLUTION: return work.images;
        case FR_EXPORT: return (int64_t)work.images * op.input.height;
        default: return work.images * blocks(op.output, op.dtype) * op.output.height;
    }
}

void elementwise_chunk(const Work &work, int64_t chunk) {
#if defined(FR_X86)
    if (work.op->isa <= FR_AVX_VNNI)
        elementwise_avx2(work, chunk);
    else if (work.op->isa == FR_AVX512_BF16 || work.op->isa == FR_AMX_BF16)
        elementwise_avx512_bf16(work, chunk);
    else
        elementwise_avx512(work, chunk);
#elif defined(FR_ARM)
    elementwise_neon(work, chunk);
#else
    (void)work, (void)chunk;  // there are no plans without an instruction set
#endif
}

}  // namespace fastres

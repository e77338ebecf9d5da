// What is not a convolution, compiled for AVX-512 with instructions for bfloat16.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "numbers.h"
#include "plan.h"
#include "target.h"

#ifdef FR_X86

FR_BEGIN_AVX512_BF16
#define FR_STORES_BFLOAT16
#define FR_WIDEST 64  // bytes of a register
#include "elementwise_rows.h"
FR_END

namespace fastres {

void elementwise_avx512_bf16(const Work &work, int64_t chunk) { elementwise(work, chunk); }

}  // namespace fastres

#endif

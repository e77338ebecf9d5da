// What is not a convolution, compiled for AArch64, of which all have NEON.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "numbers.h"
#include "plan.h"
#include "target.h"

#ifdef FR_ARM

#include "elementwise_rows.h"

namespace fastres {

void elementwise_neon(const Work &work, int64_t chunk) { elementwise(work, chunk); }

}  // namespace fastres

#endif

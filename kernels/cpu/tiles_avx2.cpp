// Placeholder until written below.
#include "tile.h"
#include "target.h"
#ifdef FR_X86
namespace fastres {
TileFunction avx2_float32(int, int) { return nullptr; }
}
#endif

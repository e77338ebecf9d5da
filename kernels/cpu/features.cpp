// What the processor and the system allow.

#include "native.h"
#include "target.h"

#ifdef FR_X86
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Linux gives the tile registers to a process that asks (Documentation/arch/x86/xstate.rst).
bool may_use_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr int kAskForPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
#else
    return false;
#endif
}

bool has_amx_bf16() {
    unsigned a = 7, b = 0, c = 0, d = 0;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (d >> 22 & 1) && (d >> 24 & 1);  // AMX-BF16, AMX-TILE
}

}  // namespace

extern "C" uint32_t fr_isas(void) {
    __builtin_cpu_init();
    uint32_t found = 0;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found |= 1u << FR_AVX2;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512) found |= 1u << FR_AVX512;
    if (avx512 && __builtin_cpu_supports("avx512bf16")) {
        found |= 1u << FR_AVX512_BF16;
        if (has_amx_bf16() && may_use_tiles()) found |= 1u << FR_AMX_BF16;
    }
    return found;
}

#else

extern "C" uint32_t fr_isas(void) { return 0; }

#endif

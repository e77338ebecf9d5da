// What the processor and the system allow.

#include "native.h"
#include "target.h"

#if defined(FR_X86)
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

// Bits of CPUID's leaf 7 (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2,
// "CPUID"), for what compilers of the last years cannot all ask for by name.
struct Leaf7 {
    unsigned most = 0, edx = 0, eax_of_1 = 0;

    Leaf7() {
        unsigned a = 7, b = 0, c = 0, d = 0;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        most = a, edx = d;
        if (most < 1) return;
        a = 7, c = 1;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        eax_of_1 = a;
    }

    bool amx_tile() const { return edx >> 24 & 1; }
    bool amx_bf16() const { return edx >> 22 & 1; }
    bool amx_int8() const { return edx >> 25 & 1; }
    bool avx_vnni() const { return eax_of_1 >> 4 & 1; }
};

}  // namespace

extern "C" uint32_t fr_isas(void) {
    __builtin_cpu_init();
    uint32_t found = 0;
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!avx2) return 0;
    found |= 1u << FR_AVX2;
    const Leaf7 leaf;
    if (leaf.avx_vnni()) found |= 1u << FR_AVX_VNNI;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!avx512) return found;
    found |= 1u << FR_AVX512;
    const bool vnni = __builtin_cpu_supports("avx512vnni");
    if (vnni) found |= 1u << FR_AVX512_VNNI;
    const bool bf16 = __builtin_cpu_supports("avx512bf16");
    if (bf16) found |= 1u << FR_AVX512_BF16;
    if (!leaf.amx_tile() || !may_use_tiles()) return found;
    if (bf16 && leaf.amx_bf16()) found |= 1u << FR_AMX_BF16;
    if (vnni && leaf.amx_int8()) found |= 1u << FR_AMX_INT8;
    return found;
}

#elif defined(FR_ARM)
#if defined(__linux__)
#include <sys/auxv.h>
#endif

extern "C" uint32_t fr_isas(void) {
    uint32_t found = 1u << FR_NEON;
#if defined(__linux__)
    // Documentation/arch/arm64/elf_hwcaps.rst; headers of older systems have no names for them.
    constexpr unsigned long kI8mm = 1ul << 13, kBf16 = 1ul << 14;
    const unsigned long second = getauxval(AT_HWCAP2);
    if (second & kBf16) found |= 1u << FR_NEON_BF16;
    if (second & kI8mm) found |= 1u << FR_NEON_I8MM;
#endif
    return found;
}

#else

extern "C" uint32_t fr_isas(void) { return 0; }

#endif

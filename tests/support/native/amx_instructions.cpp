// AMX's instructions in software, for tests on processors that do not have them, and AVX-VNNI's
// VPDPBUSD.
//
// Such a processor raises SIGILL at each. The handler here decodes the instruction from the machine
// code, does what the manual says on tile registers of its own, one set per thread, and goes on
// behind it: the code under test is the compiled library, unchanged, and everything but the tile
// instructions runs on the processor itself. Semantics, including order and rounding of the sums,
// are those of Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, of each
// instruction. What would raise an exception there ends the process with a sentence.

#include <immintrin.h>
#include <signal.h>
#include <stdlib.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

enum Instruction {
    kConfigure,
    kRelease,
    kZero,
    kLoad,
    kStore,
    kProduct,
    kByteProduct,
    kVectorProduct,
    kInstructions
};

std::atomic<uint64_t> counts[kInstructions];
struct sigaction before;

struct Tiles {
    bool configured;
    int rows[kTiles], bytes[kTiles];  // of a row
    alignas(64) uint8_t data[kTiles][kRows][kRowBytes];
};

thread_local Tiles tiles;

[[noreturn]] void refuse(const char *why) {
    constexpr char start[] = "invalid use of a tile instruction: ";
    if (write(2, start, sizeof start - 1) < 0 || write(2, why, strlen(why)) < 0 ||
        write(2, "\n", 1) < 0)
        _exit(3);
    _exit(2);
}

void expect(bool good, const char *otherwise) {
    if (!good) refuse(otherwise);
}

void expect_tile(int tile) {
    expect(tiles.configured, "no configuration is loaded");
    expect(tile < kTiles && tiles.rows[tile] > 0, "a tile register that is not configured");
}

void configure(const uint8_t *from) {
    tiles = Tiles{};
    if (from[0] == 0) return;  // palette 0: as after TILERELEASE
    expect(from[0] == 1, "LDTILECFG: a palette other than 0 and 1");
    expect(from[1] == 0, "LDTILECFG: a first row, which only an interrupted load has");
    for (int i = 2; i < 16; i++) expect(from[i] == 0, "LDTILECFG: a reserved byte is not zero");
    for (int i = 0; i < 16; i++) {
        uint16_t bytes;
        memcpy(&bytes, from + 16 + 2 * i, 2);
        const int rows = from[48 + i];
        expect(i < kTiles || (rows == 0 && bytes == 0), "LDTILECFG: more than 8 registers");
        expect(rows <= kRows && bytes <= kRowBytes, "LDTILECFG: a register that is too large");
        expect((rows == 0) == (bytes == 0), "LDTILECFG: rows without bytes, or bytes without rows");
        if (i < kTiles) tiles.rows[i] = rows, tiles.bytes[i] = bytes;
    }
    tiles.configured = true;
}

void load(int tile, const uint8_t *from, int64_t stride) {
    expect_tile(tile);
    memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
    for (int row = 0; row < tiles.rows[tile]; row++)
        memcpy(tiles.data[tile][row], from + row * stride, (size_t)tiles.bytes[tile]);
}

void store(int tile, uint8_t *to, int64_t stride) {
    expect_tile(tile);
    for (int row = 0; row < tiles.rows[tile]; row++)
        memcpy(to + row * stride, tiles.data[tile][row], (size_t)tiles.bytes[tile]);
}

float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// The sums of the even and the odd channels of each pair run apart, from zero, and meet at the end.
__attribute__((noinline, target("avx512f,fma"))) void multiply(int to, int left, int right) {
    const int units = tiles.bytes[left] / 4, columns = tiles.bytes[to] / 4;
    for (int row = 0; row < tiles.rows[to]; row++) {
        float even[kRowBytes / 4] = {}, odd[kRowBytes / 4] = {}, sums[kRowBytes / 4];
        for (int k = 0; k < units; k++) {
            uint32_t a, b[kRowBytes / 4];
            memcpy(&a, &tiles.data[left][row][4 * k], 4);
            memcpy(b, tiles.data[right][k], sizeof b);
            for (int n = 0; n < kRowBytes / 4; n++) {
                even[n] = std::fma(as_float(a << 16), as_float(b[n] << 16), even[n]);
                odd[n] = std::fma(as_float(a & 0xffff0000), as_float(b[n] & 0xffff0000), odd[n]);
            }
        }
        memcpy(sums, tiles.data[to][row], sizeof sums);
        for (int n = 0; n < columns; n++) sums[n] += even[n] + odd[n];
        memcpy(tiles.data[to][row], sums, (size_t)columns * 4);
    }
}

void expect_product(int to, int left, int right) {
    for (const int tile : {to, left, right}) expect_tile(tile);
    expect(to != left && to != right && left != right, "a product with a register twice");
    expect(tiles.bytes[to] % 4 == 0 && tiles.bytes[left] % 4 == 0 && tiles.bytes[right] % 4 == 0,
           "a product of rows that are not whole numbers");
    expect(tiles.rows[to] == tiles.rows[left], "a product: rows of sums and left factor");
    expect(tiles.bytes[to] == tiles.bytes[right], "a product: columns of sums and right factor");
    expect(tiles.bytes[left] / 4 == tiles.rows[right], "a product: terms of the two factors");
}

// Four products of unsigned and signed bytes, added to a sum without saturation.
uint32_t dot(uint32_t sum, const uint8_t *left, const uint8_t *right) {
    for (int i = 0; i < 4; i++) sum += (uint32_t)((int32_t)left[i] * (int32_t)(int8_t)right[i]);
    return sum;
}

void byte_product(int to, int left, int right) {
    expect_product(to, left, right);
    for (int row = 0; row < tiles.rows[to]; row++)
        for (int n = 0; n < tiles.bytes[to] / 4; n++) {
            uint32_t sum;
            memcpy(&sum, &tiles.data[to][row][4 * n], 4);
            for (int k = 0; k < tiles.bytes[left] / 4; k++)
                sum = dot(sum, &tiles.data[left][row][4 * k], &tiles.data[right][k][4 * n]);
            memcpy(&tiles.data[to][row][4 * n], &sum, 4);
        }
}

// The vector registers of the thread that was interrupted, as XSAVE leaves them: the lower halves
// among the old registers, the upper ones apart (manual, volume 1, "Standard Format of XSAVE
// Area").
class Vectors {
public:
    explicit Vectors(void *area) : area_((uint8_t *)area) {
        uint32_t magic;
        memcpy(&magic, area_ + 464, 4);
        expect(magic == 0x46505853, "the system saved no vector registers");
    }
    void load(int number, uint8_t (&to)[32]) const {
        memset(to, 0, 32);
        if (area_[kState] & 2) memcpy(to, area_ + 160 + 16 * number, 16);
        if (area_[kState] & 4) memcpy(to + 16, area_ + 576 + 16 * number, 16);
    }
    void store(int number, const uint8_t (&from)[32]) {
        for (const int part : {2, 4})  // what was in its first state is now zeros in memory
            if (!(area_[kState] & part)) memset(area_ + (part == 2 ? 160 : 576), 0, 256);
        area_[kState] |= 6;
        memcpy(area_ + 160 + 16 * number, from, 16);
        memcpy(area_ + 576 + 16 * number, from + 16, 16);
    }

private:
    static constexpr int kState = 512;
    uint8_t *area_;
};

void vector_product(Vectors vectors, int to, int left, const uint8_t *right) {
    uint8_t sums[32], factors[32];
    vectors.load(to, sums);
    vectors.load(left, factors);
    for (int n = 0; n < 32; n += 4) {
        uint32_t sum;
        memcpy(&sum, sums + n, 4);
        sum = dot(sum, factors + n, right + n);
        memcpy(sums + n, &sum, 4);
    }
    vectors.store(to, sums);
}

void product(int to, int left, int right) {
    expect_product(to, left, right);
    constexpr unsigned kZeroDenormals = 0x8040, kDefault = 0x1f80;  // round half to even, no traps
    const unsigned control = _mm_getcsr();
    _mm_setcsr(kDefault | kZeroDenormals);
    multiply(to, left, right);
    _mm_setcsr(control);
}

// The general registers by their number in machine code.
constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};

// A memory operand: its address without the index, the index, and how long it is in the code.
struct Operand {
    uint64_t address;
    int64_t index;
    bool has_sib;
    int bytes;
};

Operand operand(const greg_t *registers, const uint8_t *modrm, int index_high, int base_high) {
    const int mod = *modrm >> 6, rm = *modrm & 7;
    const uint8_t *at = modrm + 1;
    Operand o{0, 0, rm == 4, 0};
    int base = rm;
    if (o.has_sib) {
        const uint8_t sib = *at++;
        const int index = (sib >> 3 & 7) | index_high << 3;
        if (index != 4) o.index = (int64_t)((uint64_t)registers[kRegisters[index]] << (sib >> 6));
        base = sib & 7;
    }
    const bool no_base = base == 5 && mod == 0;
    int32_t displacement = 0;
    if (mod == 1) displacement = (int8_t)*at++;
    if (mod == 2 || no_base) memcpy(&displacement, at, 4), at += 4;
    if (!no_base)
        o.address = (uint64_t)registers[kRegisters[base | base_high << 3]];
    else if (!o.has_sib)
        o.address = (uint64_t)at;  // counted from the next instruction
    o.address += (uint64_t)(int64_t)displacement;
    o.bytes = (int)(at - modrm);
    return o;
}

// Does the instruction at `code` and returns its length; 0 where it is not one of these.
int execute(const uint8_t *code, const greg_t *registers, void *vectors) {
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2) return 0;  // a VEX prefix of 3 bytes, map 0F38
    const bool reg_high = !(code[1] & 0x80), wide = code[2] & 0x80, vex_256 = code[2] & 4;
    const int index_high = !(code[1] & 0x40), base_high = !(code[1] & 0x20);
    const int third = ~(code[2] >> 3) & 15, prefix = code[2] & 3;  // none, 66, F3, F2
    const int opcode = code[3], modrm = code[4];
    const bool in_register = modrm >> 6 == 3;
    const int reg = (modrm >> 3 & 7) | reg_high << 3, rm = modrm & 7;
    if (opcode == 0x50 && prefix == 1 && !wide && vex_256) {
        uint8_t right[32];
        int bytes = 5;
        if (in_register) {
            Vectors(vectors).load(rm | base_high << 3, right);
        } else {
            const Operand o = operand(registers, code + 4, index_high, base_high);
            memcpy(right, (const uint8_t *)(o.address + (uint64_t)o.index), 32);
            bytes = 4 + o.bytes;
        }
        vector_product(Vectors(vectors), reg, third, right);
        counts[kVectorProduct]++;
        return bytes;
    }
    if (wide || vex_256) return 0;
    if (opcode == 0x5e && prefix == 1 && in_register) {
        byte_product(reg, rm | base_high << 3, third);
        counts[kByteProduct]++;
        return 5;
    }
    if (opcode == 0x5c && prefix == 2 && in_register) {
        product(reg, rm | base_high << 3, third);
        counts[kProduct]++;
        return 5;
    }
    if (third != 0) return 0;
    if (opcode == 0x49 && in_register) {
        if (prefix == 0 && modrm == 0xc0) {
            tiles = Tiles{};
            counts[kRelease]++;
        } else if (prefix == 3 && rm == 0) {
            expect_tile(reg);
            memset(tiles.data[reg], 0, sizeof tiles.data[reg]);
            counts[kZero]++;
        } else {
            return 0;
        }
        return 5;
    }
    if (in_register || (opcode != 0x49 && opcode != 0x4b)) return 0;
    const Operand o = operand(registers, code + 4, index_high, base_high);
    if (opcode == 0x49 && prefix == 0 && reg == 0) {
        configure((const uint8_t *)(o.address + (uint64_t)o.index));
        counts[kConfigure]++;
    } else if (opcode == 0x4b && (prefix == 1 || prefix == 3) && o.has_sib) {
        load(reg, (const uint8_t *)o.address, o.index);
        counts[kLoad]++;
    } else if (opcode == 0x4b && prefix == 2 && o.has_sib) {
        store(reg, (uint8_t *)o.address, o.index);
        counts[kStore]++;
    } else {
        return 0;
    }
    return 4 + o.bytes;
}

void handle(int, siginfo_t *, void *context) {
    mcontext_t &machine = ((ucontext_t *)context)->uc_mcontext;
    greg_t *registers = machine.gregs;
    const int bytes = execute((const uint8_t *)registers[REG_RIP], registers, machine.fpregs);
    if (bytes == 0) sigaction(SIGILL, &before, nullptr);  // and the instruction is tried again
    registers[REG_RIP] += bytes;
}

}  // namespace

extern "C" {

// 0: from now on tile instructions work in every thread of this process.
int amx_install() {
    struct sigaction action = {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO;
    for (auto &count : counts) count = 0;
    return sigaction(SIGILL, &action, &before);
}

int amx_remove() { return sigaction(SIGILL, &before, nullptr); }

// How many of each were done since amx_install(), in the order of Instruction.
void amx_counts(uint64_t *to) {
    for (const auto &count : counts) *to++ = count;
}

}  // extern "C"

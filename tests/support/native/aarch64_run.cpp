// Runs plans on a processor that is not here, for tests/support/native/aarch64.py, whose structures
// these are: a call's file is mapped, its pointers are made addresses, and results stay in the
// file. Without a file, what the library says of itself.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstdio>

#include "native.h"

struct Range {
    int64_t offset, bytes, byte;
};

struct Plan {
    const fr_op *ops;  // null: there is none
    const fr_phase *phases;
    const int64_t *guards;
    const Range *fills, *poisons, *releases;  // of releases `byte` is the op
    int64_t arena_bytes;
    int32_t op_count, phase_count, images, guard_count, fill_count, poison_count, release_count;
};

struct Call {
    Plan plans[2];  // of each thread by itself, of all together
    const fr_outside *inputs, *outputs;
    int64_t *times;
    int32_t input_count, output_count, threads, status;
};

struct Header {
    int64_t call;                     // where it is in the file
    int64_t pointers, pointer_count;  // places of 8 bytes that hold an offset in the file
};

constexpr int kNoPlan = 100, kReachesOutside = 101;

static fr_plan *made(const Plan &p, int32_t &status) {
    if (!p.ops) return nullptr;
    fr_plan *plan = fr_plan_create(p.ops, p.op_count, p.phases, p.phase_count, p.images,
                                   p.arena_bytes, p.guards, p.guard_count);
    if (!plan) {
        status = kNoPlan;
        return nullptr;
    }
    for (int i = 0; i < p.fill_count; i++)
        if (fr_plan_fill(plan, p.fills[i].offset, p.fills[i].bytes, (int)p.fills[i].byte))
            status = kNoPlan;
    for (int i = 0; i < p.release_count; i++) {
        const Range &each = p.releases[i];
        if (fr_plan_release(plan, (int)each.byte, each.offset, each.bytes)) status = kNoPlan;
    }
    for (int i = 0; i < p.poison_count; i++) {
        const int64_t range[2] = {p.poisons[i].offset, p.poisons[i].bytes};
        if (fr_plan_poison(plan, range, 1, (int)p.poisons[i].byte)) status = kNoPlan;
    }
    if (fr_plan_check(plan) >= 0) status = kReachesOutside;
    return plan;
}

int main(int count, char **arguments) {
    if (count == 1) {
        std::printf("%d %lld %u\n", fr_abi(), (long long)fr_op_bytes(), fr_isas());
        return 0;
    }
    const int file = open(arguments[1], O_RDWR);
    struct stat about;
    if (file < 0 || fstat(file, &about)) return 2;
    void *mapped =
        mmap(nullptr, (size_t)about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) return 3;
    char *base = (char *)mapped;
    const Header &header = *(Header *)base;
    const int64_t *pointers = (const int64_t *)(base + header.pointers);
    for (int64_t i = 0; i < header.pointer_count; i++)
        *(int64_t *)(base + pointers[i]) += (int64_t)base;
    Call &call = *(Call *)(base + header.call);
    call.status = 0;
    fr_plan *alone = made(call.plans[0], call.status), *together = made(call.plans[1], call.status);
    if (!call.status)
        call.status = fr_run(alone, together, call.threads, call.inputs, call.input_count,
                             call.outputs, call.output_count, call.times);
    fr_plan_destroy(alone);
    fr_plan_destroy(together);
    return 0;
}

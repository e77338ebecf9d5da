#include "plan.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <set>

#include "target.h"
#include "team.h"

namespace fastres {

struct Counter {
    alignas(64) std::atomic<int64_t> next{0};
};

// What one run needs: zeroed memory, and for each op that it goes through a counter per thread.
struct Room {
    char *arena = nullptr;
    int64_t bytes = 0;
    int64_t used = 0;  // when: a number that grows
    std::unique_ptr<Counter[]> counters;
    int64_t counter_count = 0;

    ~Room() {
        if (arena) munmap(arena, (size_t)bytes);
    }
};

struct Range {
    int64_t offset, bytes;
};

struct Fill {
    Range range;
    int byte;
};

}  // namespace fastres

struct fr_plan {
    std::vector<fr_op> ops;
    std::vector<fr_phase> phases;
    int images = 0;
    int64_t arena_bytes = 0;
    std::vector<int64_t> guards;
    std::vector<fastres::Fill> fills;
    std::vector<std::vector<fastres::Range>> released;  // by op; none where nothing is
    int64_t steps = 0;  // ops of a run, each counted as often as it runs
    std::vector<std::unique_ptr<fastres::Room>> idle;  // the one that was used last at the end

    fr_plan();
    ~fr_plan();
    std::unique_ptr<fastres::Room> take(int threads);
    void give_back(std::unique_ptr<fastres::Room> room);
};

namespace fastres {
namespace {

constexpr size_t kHuge = 2 << 20;

// The rooms that no run works in, of all plans; looked at with moment() held.
struct Idle {
    std::set<fr_plan *> plans;
    int64_t bytes = 0, most = 256 << 20, now = 0;
};

Idle &idle_rooms() {
    static auto &idle = *new Idle;  // never destroyed, as threads may run while the process ends
    return idle;
}

using Rooms = std::vector<std::unique_ptr<Room>>;

// Takes rooms out until no more than so many bytes are left, those first that were used longest
// ago. The caller lets them go when it does not hold moment() any more: that takes the system a
// while.
Rooms beyond(int64_t most) {
    Idle &all = idle_rooms();
    Rooms out;
    while (all.bytes > most) {
        fr_plan *oldest = nullptr;
        for (fr_plan *plan : all.plans)
            if (!plan->idle.empty() &&
                (!oldest || plan->idle.front()->used < oldest->idle.front()->used))
                oldest = plan;
        out.push_back(std::move(oldest->idle.front()));
        oldest->idle.erase(oldest->idle.begin());
        all.bytes -= out.back()->bytes;
    }
    return out;
}

void fill(const fr_plan &plan, const Room &room) {
    for (const Fill &each : plan.fills)
        std::memset(room.arena + each.range.offset, each.byte, (size_t)each.range.bytes);
}

std::unique_ptr<Room> new_room(const fr_plan &plan) {
    std::unique_ptr<Room> room(new (std::nothrow) Room);
    if (!room) return nullptr;
    room->bytes = (int64_t)(((size_t)plan.arena_bytes + kHuge) & ~(kHuge - 1));
    const auto map = [&] {
        return mmap(nullptr, (size_t)room->bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    };
    void *memory = map();
    if (memory == MAP_FAILED && fr_let_go()) memory = map();
    if (memory == MAP_FAILED) return nullptr;
    room->arena = (char *)memory;
#ifdef MADV_HUGEPAGE
    if (plan.guards.empty()) madvise(memory, (size_t)room->bytes, MADV_HUGEPAGE);
#endif
    for (size_t i = 0; i + 1 < plan.guards.size(); i += 2)
        if (mprotect(room->arena + plan.guards[i], (size_t)plan.guards[i + 1], PROT_NONE) != 0)
            return nullptr;
    fill(plan, *room);
    return room;
}

#ifdef FR_KERNELS
int64_t chunks(const Work &work) {
    switch (work.op->kind) {
        case FR_CONVOLUTION: return convolution_chunks(work);
        case FR_WINOGRAD: return winograd_chunks(work);
        default: return elementwise_chunks(work);
    }
}

void run_chunk(const Work &work, int64_t chunk) {
    switch (work.op->kind) {
        case FR_CONVOLUTION: return convolution_chunk(work, chunk);
        case FR_WINOGRAD: return winograd_chunk(work, chunk);
        default: return elementwise_chunk(work, chunk);
    }
}
#else  // no kernels, and no plans either: fr_isas() is 0
int64_t chunks(const Work &) { return 0; }
void run_chunk(const Work &, int64_t) {}
#endif

int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

// All ops of a plan on one of `threads` threads. Each thread begins with its own share of an op's
// chunks, the same share of the image in every op, and then helps the others with theirs.
void go_through(const fr_plan &plan, const Data &data, Counter *counters, int thread, int threads,
                Barrier *barrier, int64_t *times) {
    for (const fr_phase &phase : plan.phases) {
        for (int first = 0; first < plan.images; first += phase.images) {
            for (int i = 0; i < phase.count; i++) {
                const size_t index = (size_t)phase.first + i;
                const Work work{&plan.ops[index],
                                index + 1 < plan.ops.size() ? &plan.ops[index + 1] : nullptr,
                                &data,
                                first,
                                std::min(phase.images, plan.images - first),
                                thread};
                const int64_t began = times && thread == 0 ? now() : 0;
                const int64_t count = chunks(work);
                if (threads == 1) {
                    for (int64_t chunk = 0; chunk < count; chunk++) run_chunk(work, chunk);
                } else {
                    for (int k = 0; k < threads; k++) {
                        const int whose = (thread + k) % threads;
                        const int64_t begin = count * whose / threads;
                        const int64_t end = count * (whose + 1) / threads;
                        auto &next = counters[whose].next;
                        for (;;) {
                            const int64_t chunk =
                                begin + next.fetch_add(1, std::memory_order_relaxed);
                            if (chunk >= end) break;
                            run_chunk(work, chunk);
                        }
                    }
                    counters += threads;
                    barrier->wait(threads);
                }
                // Nobody looks at these any more; the others may begin the next op meanwhile.
                if (thread == 0 && !plan.released.empty() && first + phase.images >= plan.images)
                    for (const Range &range : plan.released[index])
                        madvise(data.arena + range.offset, (size_t)range.bytes, MADV_DONTNEED);
                if (times && thread == 0) times[index] += now() - began;
            }
        }
    }
}

struct Job {
    fr_plan *alone, *together;
    int threads;             // that were asked for, and parts of `alone`
    std::vector<Data> data;  // of `alone` part by part, then of `together`
    Counter *counters = nullptr;
    Barrier barrier;
    int64_t *times;
};

void run_job(void *context, int thread, int count) {
    Job &job = *(Job *)context;
    if (job.alone)
        for (int part = thread; part < job.threads; part += count)
            go_through(*job.alone, job.data[part], nullptr, 0, 1, nullptr,
                       part == 0 ? job.times : nullptr);
    if (job.together)
        go_through(*job.together, job.data.back(), job.counters, thread, count, &job.barrier,
                   job.alone ? nullptr : job.times);
}

}  // namespace
}  // namespace fastres

fr_plan::fr_plan() {
    std::lock_guard<std::mutex> lock(fastres::moment());
    fastres::idle_rooms().plans.insert(this);
}

fr_plan::~fr_plan() {
    std::lock_guard<std::mutex> lock(fastres::moment());
    fastres::idle_rooms().plans.erase(this);
    for (const auto &room : idle) fastres::idle_rooms().bytes -= room->bytes;
}

void fr_plan::give_back(std::unique_ptr<fastres::Room> room) {
    fastres::Rooms gone;  // behind the lock
    std::lock_guard<std::mutex> lock(fastres::moment());
    auto &all = fastres::idle_rooms();
    room->used = ++all.now;
    all.bytes += room->bytes;
    idle.push_back(std::move(room));
    if (all.bytes > all.most) gone = fastres::beyond(all.most);
}

std::unique_ptr<fastres::Room> fr_plan::take(int threads) {
    std::unique_ptr<fastres::Room> room;
    {
        std::lock_guard<std::mutex> lock(fastres::moment());
        if (!idle.empty()) {
            room = std::move(idle.back());
            idle.pop_back();
            fastres::idle_rooms().bytes -= room->bytes;
        }
    }
    if (!room)
        room = fastres::new_room(*this);
    else if (!released.empty())
        fastres::fill(*this, *room);  // what was given back is zeros
    if (!room || threads == 1) return room;
    const int64_t wanted = steps * threads;
    if (room->counter_count < wanted) {
        room->counters.reset(new (std::nothrow) fastres::Counter[(size_t)wanted]);
        room->counter_count = room->counters ? wanted : 0;
        if (!room->counters) return nullptr;
    }
    for (int64_t i = 0; i < wanted; i++) room->counters[i].next.store(0, std::memory_order_relaxed);
    return room;
}

extern "C" {

int32_t fr_abi(void) { return FR_ABI; }
int64_t fr_op_bytes(void) { return (int64_t)sizeof(fr_op); }

fr_plan *fr_plan_create(const fr_op *ops, int32_t op_count, const fr_phase *phases,
                        int32_t phase_count, int32_t images, int64_t arena_bytes,
                        const int64_t *guards, int32_t guard_count) {
    try {
        auto plan = std::make_unique<fr_plan>();
        plan->ops.assign(ops, ops + op_count);
        plan->phases.assign(phases, phases + phase_count);
        plan->images = images;
        plan->arena_bytes = arena_bytes;
        plan->guards.assign(guards, guards + 2 * (int64_t)guard_count);
        for (const fr_phase &phase : plan->phases)
            plan->steps += (int64_t)((images + phase.images - 1) / phase.images) * phase.count;
        return plan.release();
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

void fr_plan_destroy(fr_plan *plan) { delete plan; }

int32_t fr_plan_check(const fr_plan *plan) {
    const int64_t count = (int64_t)plan->ops.size();
    for (const fr_phase &phase : plan->phases) {
        if (phase.first < 0 || phase.count < 0 || phase.images < 1 ||
            (int64_t)phase.first + phase.count > count)
            return (int32_t)count;
        for (int32_t i = phase.first; i < phase.first + phase.count; i++) {
            const fr_op &op = plan->ops[(size_t)i];
            if (op.images != phase.images ||
                !fastres::stays_inside(op, plan->images, plan->arena_bytes))
                return i;
        }
    }
    return -1;
}

int32_t fr_plan_fill(fr_plan *plan, int64_t offset, int64_t bytes, int32_t byte) {
    if (offset < 0 || bytes < 0 || offset > plan->arena_bytes - bytes) return 1;
    try {
        plan->fills.push_back({{offset, bytes}, byte});
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

int32_t fr_plan_release(fr_plan *plan, int32_t op, int64_t offset, int64_t bytes) {
    if (op < 0 || (size_t)op >= plan->ops.size() || offset < 0 || bytes < 0 ||
        offset > plan->arena_bytes - bytes)
        return 1;
    try {
        plan->released.resize(plan->ops.size());
        plan->released[(size_t)op].push_back({offset, bytes});
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

void fr_keep(int64_t bytes) {
    fastres::Rooms gone;
    std::lock_guard<std::mutex> lock(fastres::moment());
    fastres::idle_rooms().most = bytes;
    gone = fastres::beyond(bytes);
}

int64_t fr_let_go(void) {
    fastres::Rooms gone;
    std::lock_guard<std::mutex> lock(fastres::moment());
    const int64_t before = fastres::idle_rooms().bytes;
    gone = fastres::beyond(0);
    return before;
}

int32_t fr_plan_poison(fr_plan *plan, const int64_t *ranges, int32_t range_count, int32_t byte) {
    auto room = plan->take(1);
    if (!room) return 1;
    for (int32_t i = 0; i < range_count; i++)
        std::memset(room->arena + ranges[2 * i], byte, (size_t)ranges[2 * i + 1]);
    plan->give_back(std::move(room));
    return 0;
}

int32_t fr_run(fr_plan *alone, fr_plan *together, int32_t threads, const fr_outside *inputs,
               int32_t input_count, const fr_outside *outputs, int32_t output_count,
               int64_t *times) {
    using namespace fastres;
    try {
        Job job;
        job.threads = threads;
        job.alone = alone;
        job.together = together;
        job.times = times;
        const int parts = (alone ? threads : 0) + (together ? 1 : 0);
        std::vector<std::unique_ptr<Room>> rooms;
        std::vector<std::vector<fr_outside>> from((size_t)parts), to((size_t)parts);
        int32_t status = 0;
        std::atomic<bool> unusual{false};
        for (int part = 0; part < parts && !status; part++) {
            const bool is_together = together && part == parts - 1;
            const int64_t first = (int64_t)part * (alone ? alone->images : 0);
            auto room = is_together ? together->take(threads) : alone->take(1);
            if (!room) {
                status = 1;
                break;
            }
            from[part].assign(inputs, inputs + input_count);
            to[part].assign(outputs, outputs + output_count);
            for (auto *side : {&from[part], &to[part]})
                for (fr_outside &tensor : *side)
                    tensor.data = (char *)tensor.data + first * tensor.image_bytes;
            if (is_together) job.counters = room->counters.get();
            job.data.push_back({room->arena, from[part].data(), to[part].data(), &unusual});
            rooms.push_back(std::move(room));
        }
        if (!status) {
            if (threads == 1) {
                run_job(&job, 0, 1);
            } else if (const auto team = Team::of(threads)) {
                team->run(run_job, &job);
            } else {
                status = 2;
            }
        }
        for (size_t part = 0; part < rooms.size(); part++)
            (together && (int)part == parts - 1 ? together : alone)
                ->give_back(std::move(rooms[part]));
        return !status && unusual.load() ? 3 : status;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

}  // extern "C"

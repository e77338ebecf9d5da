#include "team.h"

#include <condition_variable>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "native.h"
#include "target.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#endif

namespace fastres {
namespace {

#if defined(__linux__)
std::vector<int> processors() {
    std::vector<int> found;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (int i = 0; i < CPU_SETSIZE; i++)
            if (CPU_ISSET(i, &set)) found.push_back(i);
    return found;
}

void keep_to(int processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);  // refused: then anywhere
}

long process() { return getpid(); }
#else
std::vector<int> processors() { return {}; }
void keep_to(int) {}
long process() { return 0; }
#endif

class Threads final : public Team {
public:
    Threads(int count, const std::vector<int> &processors) {
        try {
            for (int i = 0; i < count; i++)
                threads_.emplace_back([this, i, count, processors] {
                    if ((int)processors.size() == count) keep_to(processors[i]);
                    work(i);
                });
        } catch (const std::system_error &) {
            stop();
            throw;
        }
    }

    ~Threads() override { stop(); }

    void run(void (*job)(void *, int, int), void *context) override {
        std::lock_guard<std::mutex> one_at_a_time(callers_);
        std::unique_lock<std::mutex> lock(mutex_);
        job_ = job;
        context_ = context;
        busy_ = (int)threads_.size();
        round_++;
        begin_.notify_all();
        done_.wait(lock, [this] { return busy_ == 0; });
    }

private:
    void work(int thread) {
        unsigned seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            begin_.wait(lock, [&] { return round_ != seen || stopping_; });
            if (stopping_) return;
            seen = round_;
            lock.unlock();
            job_(context_, thread, (int)threads_.size());
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    void stop() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
            begin_.notify_all();
        }
        for (auto &thread : threads_) thread.join();
    }

    std::mutex callers_, mutex_;
    std::condition_variable begin_, done_;
    std::vector<std::thread> threads_;
    void (*job_)(void *, int, int) = nullptr;
    void *context_ = nullptr;
    int busy_ = 0;
    unsigned round_ = 0;
    bool stopping_ = false;
};

// The entry points of an OpenMP runtime, as GCC's compiled code calls them; LLVM's and Intel's have
// them too.
struct OpenMp {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned) = nullptr;
    int (*thread)() = nullptr;
    int (*count)() = nullptr;
    long process = 0;
};

OpenMp &openmp() {
    static OpenMp runtime;
    return runtime;
}

class Region final : public Team {
public:
    explicit Region(int threads) : threads_(threads) {}

    void run(void (*job)(void *, int, int), void *context) override {
        struct Call {
            void (*job)(void *, int, int);
            void *context;
        } call{job, context};
        openmp().parallel(
            [](void *given) {
                const Call &call = *(const Call *)given;
                call.job(call.context, openmp().thread(), openmp().count());
            },
            &call, (unsigned)threads_, 0);
    }

private:
    const int threads_;
};

struct Key {
    long process;
    int threads;
    std::vector<int> processors;
    bool operator<(const Key &other) const {
        return std::tie(process, threads, processors) <
               std::tie(other.process, other.threads, other.processors);
    }
};

}  // namespace

std::mutex &moment() {
    static auto &mutex = []() -> std::mutex & {
        static auto &made = *new std::mutex;
#if defined(__linux__)
        pthread_atfork([] { made.lock(); }, [] { made.unlock(); }, [] { made.unlock(); });
#endif
        return made;
    }();
    return mutex;
}

void Barrier::wait(int threads) {
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
        arrived_.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_release);
        return;
    }
    for (int turn = 0; round_.load(std::memory_order_acquire) == round; turn++) {
        if (turn < 20000) {
#if defined(FR_X86)
            _mm_pause();
#elif defined(FR_ARM)
            __asm__ volatile("yield");
#endif
        } else {
            std::this_thread::yield();
        }
    }
}

std::shared_ptr<Team> Team::of(int threads) {
    // Never destroyed: threads may still wait in it while the process ends. A child after fork()
    // finds its parent's entries under another process and leaves them alone, for their threads are
    // not in it.
    static auto &teams = *new std::map<Key, std::shared_ptr<Team>>;
    if (openmp().parallel && openmp().process == process())
        return std::make_shared<Region>(threads);
    Key key{process(), threads, processors()};
    std::lock_guard<std::mutex> guard(moment());
    auto &team = teams[key];
    if (!team) {
        try {
            team = std::make_shared<Threads>(threads, key.processors);
        } catch (const std::system_error &) {
            return nullptr;
        }
    }
    return team;
}

}  // namespace fastres

extern "C" void fr_use_openmp(void *parallel, void *thread, void *count) {
    auto &runtime = fastres::openmp();
    runtime.thread = (int (*)())thread;
    runtime.count = (int (*)())count;
    runtime.process = fastres::process();
    runtime.parallel = (void (*)(void (*)(void *), void *, unsigned, unsigned))parallel;
}

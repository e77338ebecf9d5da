// Threads that run one job together.

#ifndef FASTRES_TEAM_H
#define FASTRES_TEAM_H

#include <atomic>
#include <memory>
#include <mutex>

namespace fastres {

// Held for moments, by whoever looks up what runs share. fork() waits for it, so that no child
// finds it held by a thread that the child does not have.
std::mutex &moment();

// A place in a job that all of its threads reach before any goes on. They spin, because the next
// work is microseconds away, and let others run where that turns out wrong.
class Barrier {
public:
    void wait(int threads);

private:
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
};

// Where the process has an OpenMP runtime (torch has), the team is that runtime's: its threads wait
// in a loop for a while after torch's last operation, and threads of our own would share processors
// with them. Otherwise, and in a child after fork(), which such a runtime does not survive, it is a
// fixed number of threads, asleep between jobs. Where there are as many as the process has
// processors, each keeps to its own. The caller sleeps while they work, so that it takes no
// processor from them; one job at a time, further callers wait.
class Team {
public:
    // The team of that many threads for this process and its present affinity; made on first use,
    // and again in a child after fork(). Null where the system refuses a thread.
    static std::shared_ptr<Team> of(int threads);

    virtual ~Team() = default;
    // Runs job(context, thread, count) on every thread and returns when all are done. `count` is
    // how many there are: those asked for, or fewer.
    virtual void run(void (*job)(void *, int, int), void *context) = 0;
};

}  // namespace fastres
#endif

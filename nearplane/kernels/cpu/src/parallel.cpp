#include "parallel.h"

#include <algorithm>
#include <exception>
#include <new>
#include <thread>
#include <vector>

namespace nearplane {

namespace {

std::atomic<Fork> team{nullptr};
thread_local unsigned wanted = 1;

struct Work {
  const std::function<void(uint32_t)>& fn;
  uint32_t count;
  std::atomic<uint32_t> next{0};
  std::atomic<bool> short_of_memory{false};
};

// No exception leaves: it would end the process on a team's thread.
void take(void* data) {
  Work& work = *static_cast<Work*>(data);
  try {
    for (uint32_t k; (k = work.next.fetch_add(1, std::memory_order_relaxed)) < work.count;) work.fn(k);
  } catch (const std::bad_alloc&) {
    work.short_of_memory = true;
  }
}

void run(Work& work, unsigned n) {
  if (n <= 1) return take(&work);
  if (Fork fork = team) return fork(take, &work, wanted, 0);
  // no OpenMP runtime beside us: threads that live as long as the call; fewer do as well
  std::vector<std::thread> others;
  try {
    others.reserve(n - 1);
    for (unsigned k = 1; k < n; k++) others.emplace_back(take, &work);
  } catch (const std::exception&) {}
  take(&work);
  for (auto& other : others) other.join();
}

}  // namespace

void set_fork(Fork fork) { team = fork; }
void set_threads(unsigned threads) { wanted = std::max(1u, threads); }
unsigned threads() { return wanted; }

void parallel_for(uint32_t count, const std::function<void(uint32_t)>& fn) {
  Work work{fn, count};
  run(work, std::min<unsigned>(wanted, count));
  if (work.short_of_memory) throw std::bad_alloc();
}

}  // namespace nearplane

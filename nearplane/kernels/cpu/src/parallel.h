// One pool of threads: torch's own, through the OpenMP runtime that it brought.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>

namespace nearplane {

// What GOMP_parallel is in every OpenMP runtime: run fn(data) on each thread of a team.
using Fork = void (*)(void (*fn)(void*), void* data, unsigned threads, unsigned flags);

void set_fork(Fork fork);
void set_threads(unsigned threads);
unsigned threads();

// Call fn(k) for k = 0 .. count - 1, in any order, on as many threads as set_threads said;
// std::bad_alloc if any of them needs more memory than there is.
void parallel_for(uint32_t count, const std::function<void(uint32_t)>& fn);

}  // namespace nearplane

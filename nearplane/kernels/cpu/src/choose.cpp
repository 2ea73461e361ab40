// Which kernels run: the best that the processor has, unless another was asked for.
#include <atomic>

#include "kernels.h"

#if NEARPLANE_X86
#include <cpuid.h>
#endif

namespace nearplane {

namespace {

#if NEARPLANE_X86
// All that CMakeLists.txt compiles a file for. Not every compiler takes "f16c" as a name.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("popcnt") && has_f16c();
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif
bool always() { return true; }

struct Candidate { const Kernels* kernels; bool (*has)(); };
constexpr Candidate candidates[] = {
#if NEARPLANE_X86
    {&avx512_bf16_kernels, has_avx512_bf16}, {&avx512_kernels, has_avx512}, {&avx2_kernels, has_avx2},
#endif
    {&plain_kernels, always}};

const Kernels* best() {
  for (const Candidate& c : candidates) if (c.has()) return c.kernels;
  return &plain_kernels;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* k = chosen.load(std::memory_order_relaxed);
  if (!k) chosen.store(k = best(), std::memory_order_relaxed);
  return *k;
}

bool available(const char* name) {
  for (const Candidate& c : candidates) if (!std::strcmp(c.kernels->name, name)) return c.has();
  return false;
}

bool choose(const char* name) {
  for (const Candidate& c : candidates)
    if (!std::strcmp(c.kernels->name, name) && c.has()) { chosen = c.kernels; return true; }
  return false;
}

}  // namespace nearplane

// Which kernels run: the best that the processor has, unless another was asked for.
#include <atomic>

#include "kernels.h"

#if NEARPLANE_X86
#include <cpuid.h>
#elif NEARPLANE_ARM && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace nearplane {

namespace {

#if NEARPLANE_X86
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

#if NEARPLANE_AVX_VNNI
bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}
#endif

#define HAS(name) __builtin_cpu_supports(name)
#define HAS_AVX2 (HAS("avx2") && HAS("fma") && HAS("bmi") && HAS("bmi2") && HAS("popcnt") && has_f16c())
#define HAS_AVX_VNNI has_avx_vnni()
#define HAS_AVX512                                                                                 \
  (HAS("avx512f") && HAS("avx512bw") && HAS("avx512dq") && HAS("avx512vl") && HAS("avx512vbmi") && \
   HAS("avx512vbmi2") && HAS("avx512vnni"))
#elif NEARPLANE_ARM && defined(__linux__)
#define HAS_DOT (getauxval(AT_HWCAP) & HWCAP_ASIMDDP)
#elif NEARPLANE_ARM && defined(__APPLE__)
#define HAS_DOT true  // since the first of these processors
#elif NEARPLANE_ARM
#define HAS_DOT false
#endif

struct Candidate {
  const Kernels* kernels;
  bool (*has)();
};
constexpr Candidate candidates[] = {
#define CANDIDATE(name, flags, condition) {&name##_kernels, [] { return bool(condition); }},
    NEARPLANE_INSTRUCTION_SETS(CANDIDATE)
#undef CANDIDATE
        {&plain_kernels, [] { return true; }}};

const Kernels* best() {
  for (const Candidate& c : candidates)
    if (c.has()) return c.kernels;
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
  for (const Candidate& c : candidates)
    if (!std::strcmp(c.kernels->name, name)) return c.has();
  return false;
}

const char* name(unsigned place) {
  constexpr size_t count = sizeof candidates / sizeof *candidates;
  return place < count ? candidates[count - 1 - place].kernels->name : nullptr;
}

bool choose(const char* name) {
  for (const Candidate& c : candidates)
    if (!std::strcmp(c.kernels->name, name) && c.has()) {
      chosen = c.kernels;
      return true;
    }
  return false;
}

}  // namespace nearplane

// What keeps the library from needing newer system libraries than manylinux_2_28 has (NEARPLANE_OLDER_LIBRARIES): glibc
// and libstdc++ gave these functions new names or versions, which say the same.
#include <cmath>
#include <new>

#if defined(__GLIBC__)
#if defined(__x86_64__)
#define FIRST_VERSION "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define FIRST_VERSION "GLIBC_2.17"
#else
#error no first version of glibc is known for this processor
#endif

// log2 of glibc 2.29 sets no errno; the linker leads calls of log2 here (--wrap=log2)
extern "C" double first_log2(double);
__asm__(".symver first_log2, log2@" FIRST_VERSION);
extern "C" double __wrap_log2(double x) { return first_log2(x); }

// gcc 11 moved this from its headers to libstdc++
namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std
#endif

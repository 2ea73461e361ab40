// The instruction sets that have kernels of their own, the fastest first. NAME.cpp defines NAME_kernels (kernels.h).
//
// An entry X(name, flags, condition), A(...) for ARM, is all that a new one needs beside its file: CMakeLists.txt
// compiles NAME.cpp with the flags, which it reads from here (the name and the flags stand on one line); choose.cpp
// takes the first set whose condition holds on the processor. HAS is __builtin_cpu_supports; not every compiler takes
// "f16c" as its name.
#pragma once

// Entries V(...) are those of compilers that know AVX-VNNI, which are newer than the others need.

// clang-format off
#define NEARPLANE_VNNI_SETS(V) \
  V(avx_vnni, "-mavx2 -mfma -mf16c -mbmi -mbmi2 -mavxvnni", HAS_AVX2 && HAS_AVX_VNNI)
#if !NEARPLANE_AVX_VNNI
#undef NEARPLANE_VNNI_SETS
#define NEARPLANE_VNNI_SETS(V)
#endif
#define NEARPLANE_X86_SETS(X) \
  X(avx512_bf16, "-mavx2 -mfma -mf16c -mbmi -mbmi2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vbmi2 -mavx512vnni -mavx512bf16", \
    HAS_AVX2 && HAS_AVX512 && HAS("avx512bf16")) \
  X(avx512, "-mavx2 -mfma -mf16c -mbmi -mbmi2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vbmi2 -mavx512vnni", \
    HAS_AVX2 && HAS_AVX512) \
  NEARPLANE_VNNI_SETS(X) \
  X(avx2, "-mavx2 -mfma -mf16c -mbmi -mbmi2", HAS_AVX2)
#define NEARPLANE_ARM_SETS(A) \
  A(neon_dot, "-march=armv8.2-a+dotprod", HAS_DOT)

#if NEARPLANE_X86
#define NEARPLANE_INSTRUCTION_SETS NEARPLANE_X86_SETS
#elif NEARPLANE_ARM
#define NEARPLANE_INSTRUCTION_SETS NEARPLANE_ARM_SETS
#else
#define NEARPLANE_INSTRUCTION_SETS(X)
#endif
// clang-format on

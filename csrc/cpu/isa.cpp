#include "isa.h"

#include <cstdlib>
#include <stdexcept>

#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ape::cpu {
namespace {

struct Candidate {
  const char* name;
  const Kernels* kernels;
  bool runs;
};

#ifdef __x86_64__
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// Reads CPUID leaf 7 directly, because compilers have different names for this bit.
bool has_avx512bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

// Asks the CPU, and then the operating system: a process must request the tile registers once.
bool has_amx() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool bf16_and_tiles = (d >> 22 & 1) && (d >> 24 & 1);
  return bf16_and_tiles && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = {
#ifdef __x86_64__
      {"amx", &amx_kernels, has_amx()},
      {"avx512bf16", &avx512bf16_kernels, has_avx512bf16()},
      {"avx512", &avx512_kernels, has_avx512()},
      {"avx2", &avx2_kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
      {"portable", &portable_kernels, true},
  };
  return all;
}

const Candidate& chosen() {
  const char* wish = std::getenv("APE_CPU_ISA");
  const bool any = wish == nullptr || *wish == '\0';
  for (const Candidate& candidate : candidates())
    if (candidate.runs && (any || std::string(wish) == candidate.name)) return candidate;
  std::string able;
  for (const std::string& name : isas()) able += (able.empty() ? "" : ", ") + name;
  throw std::invalid_argument("APE_CPU_ISA: expected one of " + able + " on this CPU, got " + wish);
}

}  // namespace

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates())
    if (candidate.runs) names.push_back(candidate.name);
  return names;
}

std::string isa() { return chosen().name; }

const Kernels& kernels() { return *chosen().kernels; }

}  // namespace ape::cpu

#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace ape::cpu {
namespace {

struct Candidate {
  const char* name;
  const Kernels* kernels;
  bool runs;
};

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = {
#ifdef __x86_64__
      {"avx512", &avx512_kernels,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq")},
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

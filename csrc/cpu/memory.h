// Large aligned memory.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace ape::cpu {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Memory = std::unique_ptr<T[], Free>;

// `count` uninitialised elements, on huge pages if the system grants them. Pages of 4 KB would be scattered over the
// sets of L2, and the buffers of a patch fill two thirds of L2. Throws std::bad_alloc.
template <class T>
Memory<T> allocate(size_t count) {
  constexpr size_t kLine = 64, kHugePage = size_t(2) << 20;
  size_t bytes = (count * sizeof(T) + kLine - 1) / kLine * kLine;
  const bool huge = bytes >= kHugePage / 2;
  if (huge) bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = std::aligned_alloc(huge ? kHugePage : kLine, bytes);
  if (memory == nullptr) throw std::bad_alloc();
#ifdef __linux__
  if (huge) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return Memory<T>(static_cast<T*>(memory));
}

}  // namespace ape::cpu

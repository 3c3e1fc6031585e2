// Large aligned memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace ape::cpu {

// Whole huge pages of memory that is about to be written for the first time, if the system grants them: a page fault
// zeroes 2 MB instead of 4 KB.
inline void prefer_huge_pages(void* memory, size_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kHugePage = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

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
  if (huge) prefer_huge_pages(memory, bytes);
  return Memory<T>(static_cast<T*>(memory));
}

}  // namespace ape::cpu

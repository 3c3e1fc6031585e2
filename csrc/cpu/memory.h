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

// `count` elements, uninitialised, on huge pages where the system grants them: 4 KB pages scatter over the
// sets of L2, which a patch's buffers fill to two thirds. Throws std::bad_alloc.
template <class T>
Memory<T> allocate(size_t count) {
  constexpr size_t LINE = 64, HUGE_PAGE = size_t(2) << 20;
  size_t bytes = (count * sizeof(T) + LINE - 1) / LINE * LINE;
  const bool huge = bytes >= HUGE_PAGE / 2;
  if (huge) bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  void* memory = std::aligned_alloc(huge ? HUGE_PAGE : LINE, bytes);
  if (memory == nullptr) throw std::bad_alloc();
#ifdef __linux__
  if (huge) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return Memory<T>(static_cast<T*>(memory));
}

}  // namespace ape::cpu

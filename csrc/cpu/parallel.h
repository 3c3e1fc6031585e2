// Workers that take tickets from one queue.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace ape {

// Calls body(worker, task) once for every task in [0, tasks). There are at most min(threads, tasks) workers, numbered
// from 0; worker 0 is the calling thread. When `body` throws, no further task begins. After all workers have stopped,
// the first exception is thrown here.
template <class F>
void parallel(int threads, int64_t tasks, F body) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr failure;  // written by the worker that set `failed`
  const auto work = [&](int worker) {
    try {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks && !failed;) body(worker, task);
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  };
  const int workers = static_cast<int>(std::min<int64_t>(threads, tasks));
  std::vector<std::thread> helpers;
  helpers.reserve(std::max(workers, 1));
  try {
    for (int worker = 1; worker < workers; ++worker) helpers.emplace_back(work, worker);
  } catch (const std::exception&) {
    // There are no more threads. This thread and those that started share the tasks.
  }
  work(0);
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace ape

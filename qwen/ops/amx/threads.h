// What kernels share: work on XLA's threads, and memory that is kept from call to call.

#ifndef QWEN2_KERNELS_THREADS_H_
#define QWEN2_KERNELS_THREADS_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace qwen {

// Memory of a thread that is kept from call to call, because fresh pages cost more than the work.
template <typename T, int kSlot>
T* Scratch(int64_t size) {
  static thread_local std::unique_ptr<void, decltype(&std::free)> held(nullptr, std::free);
  static thread_local int64_t held_bytes = 0;
  const int64_t bytes = (size * int64_t{sizeof(T)} + 63) / 64 * 64;
  if (held_bytes < bytes) {
    held.reset(std::aligned_alloc(64, bytes));
    held_bytes = bytes;
  }
  return static_cast<T*>(held.get());
}

// Runs work(0) ... work(count - 1) on XLA's threads and on this one, which never waits for a
// thread that has not begun. What is computed does not depend on the number of threads.
// Each thread that takes part holds a `Held` meanwhile.
template <typename Held>
void ParallelWith(xla::ffi::ThreadPool& pool, int64_t count,
                  const std::function<void(int64_t)>& work) {
  struct State {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto state = std::make_shared<State>();
  // A helper that starts late finds nothing left and does not touch `work`, which may be gone.
  const std::function<void()> run = [state, count, work = &work] {
    int64_t mine = 0;
    {
      std::unique_ptr<Held> held;
      for (int64_t unit; (unit = state->next.fetch_add(1)) < count; ++mine) {
        if (!held) held = std::make_unique<Held>();
        (*work)(unit);
      }
    }
    if (mine == 0) return;
    std::lock_guard<std::mutex> lock(state->mutex);
    state->done += mine;
    if (state->done == count) state->finished.notify_one();
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(run));
  run();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->finished.wait(lock, [&] { return state->done == count; });
}

}  // namespace qwen

#endif  // QWEN2_KERNELS_THREADS_H_

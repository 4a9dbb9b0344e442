// Parallel work on XLA's threads; each thread has its own tile registers and scratch memory.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "xla/ffi/api/ffi.h"

namespace qwen {

namespace ffi = xla::ffi;

// Configures the tile registers of a thread for the lifetime of the object.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~TileRegisters() { _tile_release(); }
};

// Returns scratch memory of the thread, or null if out of memory. The memory is kept between calls
// because fresh pages cost more than the work.
template <typename T, int kSlot>
T* Scratch(int64_t size) {
  static thread_local std::unique_ptr<void, decltype(&std::free)> held(nullptr, std::free);
  static thread_local int64_t held_bytes = 0;
  const int64_t bytes = (size * int64_t{sizeof(T)} + 63) / 64 * 64;
  if (held_bytes < bytes) {
    held.reset(std::aligned_alloc(64, bytes));
    held_bytes = held ? bytes : 0;
  }
  return static_cast<T*>(held.get());
}

inline ffi::Error NoMemory() {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "Out of memory for an AMX kernel.");
}

// Runs work(0) ... work(count - 1) on XLA's threads and on the calling thread, which never waits
// for a thread that has not started. `work` returns false if it is out of memory. Results do not
// depend on the number of threads.
inline ffi::Error Parallel(ffi::ThreadPool& pool, int64_t count,
                           const std::function<bool(int64_t)>& work) {
  struct State {
    std::mutex mutex;
    std::condition_variable finished;
    int64_t next = 0, done = 0;
    bool failed = false;
  };
  auto state = std::make_shared<State>();
  // A thread that starts late finds no unit left and does not call `work`, which may be destroyed.
  const std::function<void()> run = [state, count, work = &work] {
    std::optional<TileRegisters> registers;
    std::unique_lock<std::mutex> lock(state->mutex);
    while (state->next < count) {
      const int64_t unit = state->next++;
      lock.unlock();
      if (!registers) registers.emplace();
      const bool succeeded = (*work)(unit);
      lock.lock();
      state->failed |= !succeeded;
      if (++state->done == count) state->finished.notify_one();
    }
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(run));
  run();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->finished.wait(lock, [&] { return state->done == count; });
  return state->failed ? NoMemory() : ffi::Error::Success();
}

}  // namespace qwen

#ifndef ACTIVATION_DATASET_NATIVE_FILE_H_
#define ACTIVATION_DATASET_NATIVE_FILE_H_

#include <unistd.h>

#include <cerrno>
#include <cstdint>

namespace activation_dataset {

// Reads bytes of a file. Returns 0, -1 where the file ends too early, or else -1 - errno.
inline int64_t Fill(int file, int64_t offset, void* to, int64_t bytes) {
  char* at = static_cast<char*>(to);
  while (bytes) {
    const ssize_t count = pread(file, at, bytes, offset);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return count ? -1 - errno : -1;
    at += count;
    offset += count;
    bytes -= count;
  }
  return 0;
}

}  // namespace activation_dataset

#endif  // ACTIVATION_DATASET_NATIVE_FILE_H_

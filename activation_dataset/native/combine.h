#ifndef ACTIVATION_DATASET_NATIVE_COMBINE_H_
#define ACTIVATION_DATASET_NATIVE_COMBINE_H_

#include <cstdint>

namespace activation_dataset {

// CRC32C of two byte strings, from the CRC32C of each and the length of the second, as `combine` in
// checksum.py; faster for lengths that this thread has seen lately.
uint32_t Combine(uint32_t first, uint32_t second, int64_t second_length);

}  // namespace activation_dataset

#endif  // ACTIVATION_DATASET_NATIVE_COMBINE_H_

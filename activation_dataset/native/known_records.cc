// Records of which all is known but their payloads: read, compared and summed piece by piece, while
// a piece is in a core's cache, with the moments of the vectors that the payloads are.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "combine.h"
#include "file.h"
#include "framing.h"
#include "moments.h"

namespace activation_dataset {

// Records that lie one behind the other; places are counted from the first one's first byte on.
struct KnownRecords {
  int64_t count;
  const int64_t *starts, *stops;  // [count] where each payload starts and stops
  const int64_t* ends;            // [count] where each record ends
  const uint8_t* known;           // all bytes but the payloads, end to end; where the CRCs of the
                                  // data are, anything
};

// How far they have been read.
struct Reading {
  int64_t file, offset;  // descriptor, and where the first record starts
  int64_t record;        // number of the one that is being read
  int64_t at;            // bytes that were compared or taken
  int64_t read;          // bytes that were read; those from `at` on are the last in the piece
  int64_t known;         // known bytes that were compared
  int64_t crc;           // CRC32C of the records before it, and of all before them
  int64_t data_crc;      // CRC32C of the record's data so far
  int64_t piece_bytes;
  uint8_t* piece;
};

// The payloads' vectors, as far as they have not been joined into statistics.
struct VectorBlocks {
  int64_t bfloat16, hidden, rows, blocks;  // rows of a block, and blocks for which there is room
  int64_t filled;                          // bytes of the block
  int64_t measured;                        // blocks whose moments are there
  float least_square, largest_square;
  double cancellation;
  uint8_t* block;           // [rows, hidden]
  double *mean, *variance;  // [blocks, hidden]
  float* squares;           // [blocks, rows]
};

namespace {

class Reader {
 public:
  Reader(Extend extend, const KnownRecords& records, Reading& reading, VectorBlocks& vectors)
      : extend_(extend), records_(records), reading_(reading), vectors_(vectors) {}

  int64_t Run() {
    while (reading_.record < records_.count) {
      const int64_t record = reading_.record;
      const int64_t data = (record ? records_.ends[record - 1] : 0) + kHeaderBytes;
      const int64_t start = records_.starts[record], stop = records_.stops[record];
      const int64_t crc = records_.ends[record] - kCrcBytes;
      if (reading_.at < data) reading_.data_crc = 0;
      int64_t result = Compare(data, false);
      if (!result) result = Compare(start, true);
      if (!result && reading_.at < stop) result = Take(stop);
      if (!result) result = Compare(crc, true);
      if (!result) result = CompareCrc();
      if (result) return result;
      AddToFile(data, crc);
      ++reading_.record;
    }
    return 0;
  }

 private:
  const uint8_t* Here() const {
    return reading_.piece + reading_.piece_bytes - (reading_.read - reading_.at);
  }

  // Reads a piece if all of the last one was taken.
  int64_t More() {
    if (reading_.at < reading_.read) return 0;
    const int64_t left = records_.ends[records_.count - 1] - reading_.read;
    const int64_t bytes = std::min(reading_.piece_bytes, left);
    return Into(reading_.piece + reading_.piece_bytes - bytes, bytes);
  }

  int64_t Into(uint8_t* memory, int64_t bytes) {
    const int64_t failed = Fill(reading_.file, reading_.offset + reading_.read, memory, bytes);
    if (!failed) reading_.read += bytes;
    return failed;
  }

  int64_t Compare(int64_t end, bool summed) {
    while (reading_.at < end) {
      if (const int64_t failed = More()) return failed;
      const int64_t bytes = std::min(end, reading_.read) - reading_.at;
      if (std::memcmp(Here(), records_.known + reading_.known, bytes)) return -1;
      if (summed) reading_.data_crc = extend_(reading_.data_crc, Here(), bytes);
      reading_.known += bytes;
      reading_.at += bytes;
    }
    return 0;
  }

  int64_t CompareCrc() {
    const uint32_t masked = Masked(reading_.data_crc);
    const uint8_t* expected = reinterpret_cast<const uint8_t*>(&masked);
    for (int64_t place = 0; place < kCrcBytes; ++place) {
      if (const int64_t failed = More()) return failed;
      if (*Here() != expected[place]) return -1;
      ++reading_.known;
      ++reading_.at;
    }
    return 0;
  }

  // Adds the record, whose data goes from `data` to `crc`, to the CRC of the file.
  void AddToFile(int64_t data, int64_t crc) {
    const int64_t payload = records_.stops[reading_.record] - records_.starts[reading_.record];
    const uint8_t* footer = records_.known + reading_.known - kCrcBytes;
    const uint8_t* header = footer - (crc - data - payload) - kHeaderBytes;
    const uint32_t masked = Masked(reading_.data_crc);
    uint32_t file = extend_(reading_.crc, header, kHeaderBytes);
    file = Combine(file, reading_.data_crc, crc - data);
    reading_.crc = extend_(file, reinterpret_cast<const uint8_t*>(&masked), kCrcBytes);
  }

  int64_t Take(int64_t stop) {
    const int64_t room = vectors_.rows * vectors_.hidden * (vectors_.bfloat16 ? 2 : 4);
    while (reading_.at < stop) {
      if (vectors_.filled == room || vectors_.measured == vectors_.blocks) return 1;
      uint8_t* to = vectors_.block + vectors_.filled;
      int64_t bytes = std::min(stop - reading_.at, room - vectors_.filled);
      if (reading_.at == reading_.read && bytes >= reading_.piece_bytes) {
        if (const int64_t failed = Into(to, bytes)) return failed;
      } else {
        if (const int64_t failed = More()) return failed;
        bytes = std::min(bytes, reading_.read - reading_.at);
        std::memcpy(to, Here(), bytes);
      }
      reading_.data_crc = extend_(reading_.data_crc, to, bytes);
      reading_.at += bytes;
      vectors_.filled += bytes;
      if (vectors_.filled == room && Measure()) vectors_.filled = 0;
    }
    return 0;
  }

  bool Measure() {
    const int64_t block = vectors_.measured;
    const int64_t done =
        Moments(vectors_.block, vectors_.bfloat16, 1, vectors_.rows, vectors_.hidden,
                vectors_.least_square, vectors_.largest_square, vectors_.cancellation,
                vectors_.mean + block * vectors_.hidden, vectors_.variance + block * vectors_.hidden,
                vectors_.squares + block * vectors_.rows);
    vectors_.measured += done;
    return done;
  }

  const Extend extend_;
  const KnownRecords& records_;
  Reading& reading_;
  VectorBlocks& vectors_;
};

}  // namespace
}  // namespace activation_dataset

// Reads records, up to their end or until the block cannot be measured, so that it stays full, or
// there is no room for the moments of another.
// Returns 0 at their end, 1 before, -1 where a record is another, the file ends too early or the CRC
// of a record's data does not match, or else -1 - errno.
extern "C" int64_t ReadKnownRecords(activation_dataset::Extend extend,
                                    const activation_dataset::KnownRecords* records,
                                    activation_dataset::Reading* reading,
                                    activation_dataset::VectorBlocks* vectors) {
  return activation_dataset::Reader(extend, *records, *reading, *vectors).Run();
}

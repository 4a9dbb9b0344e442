// Finding the records of a block, and taking them apart where they are just as record.py encodes them.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "framing.h"

namespace activation_dataset {
namespace {

constexpr int kMaxVarintBytes = 5;  // for values below 2^35
constexpr uint64_t kLongest = uint64_t{1} << 62;  // of a record; files are shorter
constexpr uint8_t kBytesList = 0x0a, kInt64List = 0x1a;

struct Span {
  int64_t start, end;
};

// A place in a record's data. Where that is not what is asked for, it is no longer sound and at its
// end, whatever else is asked for.
class Cursor {
 public:
  Cursor(const uint8_t* block, int64_t start, int64_t end) : block_(block), at_(start), end_(end) {
    Require(Enter(0x0a) == end_);
  }

  bool sound() const { return sound_; }
  int64_t at() const { return at_; }

  void Require(bool condition) {
    if (condition) return;
    sound_ = false;
    at_ = end_;
  }

  void Literal(const void* text, int64_t size) {
    if (size <= end_ - at_ && !std::memcmp(block_ + at_, text, size)) at_ += size;
    else Require(false);
  }

  // A number in the shortest encoding.
  int64_t Varint() {
    int64_t value = 0;
    for (int place = 0; place < kMaxVarintBytes && at_ < end_; ++place) {
      const uint8_t byte = block_[at_++];
      value |= int64_t{byte & 0x7f} << 7 * place;
      if (byte < 0x80) {
        Require(byte || !place);
        return value;
      }
    }
    Require(false);
    return 0;
  }

  // The end of the field of that tag, whose content is where the cursor is then.
  int64_t Enter(uint8_t tag) {
    Literal(&tag, 1);
    const int64_t size = Varint();
    Require(size <= end_ - at_);
    return sound_ ? at_ + size : end_;
  }

  // The one value, or packed values, of the feature of that name; the cursor is at its start.
  Span Feature(const char* name, int64_t name_size, uint8_t list_tag) {
    const int64_t end = Enter(0x0a);
    const int64_t name_end = Enter(0x0a);
    Require(name_end - at_ == name_size);
    Literal(name, name_size);
    for (const uint8_t tag : {uint8_t{0x12}, list_tag, uint8_t{0x0a}}) Require(Enter(tag) == end);
    return {at_, end};
  }

  template <int64_t kSize>
  Span Feature(const char (&name)[kSize], uint8_t list_tag) {
    return Feature(name, kSize - 1, list_tag);
  }

  void GoTo(int64_t place) {
    if (sound_) at_ = place;
  }

 private:
  const uint8_t* block_;
  int64_t at_, end_;
  bool sound_ = true;
};

}  // namespace
}  // namespace activation_dataset

// The whole records at the beginning of a block of `size` bytes.
//   ends   [most] where each of them ends
//   needed gets the size of a block that holds one more, as far as its header is there to tell
// Returns how many there are, or -1 where a CRC does not match.
extern "C" int64_t FindRecords(activation_dataset::Extend extend, const uint8_t* block,
                               int64_t size, int64_t most, int64_t* ends, int64_t* needed) {
  using namespace activation_dataset;
  int64_t at = 0, count = 0;
  *needed = kHeaderBytes;
  while (count < most && kHeaderBytes <= size - at) {
    uint64_t length;
    std::memcpy(&length, block + at, kLengthBytes);
    if (!CrcMatches(extend, block + at, kLengthBytes)) return -1;
    const int64_t data = at + kHeaderBytes;
    length = std::min(length, kLongest);
    const int64_t end = data + length + kCrcBytes;
    if (end > size) {
      *needed = end;
      return count;
    }
    if (!CrcMatches(extend, block + data, length)) return -1;
    ends[count++] = at = end;
    *needed = at + kHeaderBytes;
  }
  return count;
}

// Takes `count` records apart.
//   starts, ends   where each starts and ends in the block
//   payload        name of the feature that comes first, of `payload_size` characters
//   width          last number of the feature `shape`
//   every_token    whether `shape` is [num_tokens, width], else [width]
//   num_tokens     [count]
//   spans          [4, 2, count] where payload, sample_id, task_id and token_ids start and end
// Returns -1, or the number of the first record that is not as it must be.
extern "C" int64_t ParseRecords(const uint8_t* block, const int64_t* starts, const int64_t* ends,
                                int64_t count, const char* payload, int64_t payload_size,
                                int64_t width, int64_t every_token, int64_t* num_tokens,
                                int64_t* spans) {
  using namespace activation_dataset;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t data_end = ends[i] - kCrcBytes;
    Cursor cursor(block, starts[i] + kHeaderBytes, data_end);
    int64_t* column = spans + i;
    const auto keep = [&](Span span) {
      column[0] = span.start;
      column[count] = span.end;
      column += 2 * count;
      cursor.GoTo(span.end);
    };
    keep(cursor.Feature(payload, payload_size, kBytesList));
    const Span tokens = cursor.Feature("num_tokens", kInt64List);
    num_tokens[i] = cursor.Varint();
    cursor.Require(cursor.at() == tokens.end);
    keep(cursor.Feature("sample_id", kBytesList));
    const Span shape = cursor.Feature("shape", kInt64List);
    if (every_token) cursor.Require(cursor.Varint() == num_tokens[i]);
    cursor.Require(cursor.Varint() == width);
    cursor.Require(cursor.at() == shape.end);
    keep(cursor.Feature("task_id", kBytesList));
    keep(cursor.Feature("token_ids", kInt64List));
    cursor.Require(cursor.at() == data_end);
    if (!cursor.sound()) return i;
  }
  return -1;
}

// How the work of a step is divided, and the room that its stages share: what does not depend on an instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace lip_fast::cpu {

// Rows of a matrix that a core takes at a time, with what they are multiplied by in its caches: 8 blocks of registers.
constexpr int kTile = 48;
// Parts of a sum over rows. They divide the work, and are added up in order.
constexpr int kParts = 8;
// Rows of a part at least, of a matrix and of a batch.
constexpr int kFewRows = 24;
// Features of a batch at a time.
constexpr int kFeatures = 128;

/// Columns of a small matrix at most; a stack holds a few rows of them.
constexpr int kMostSmall = 128;

constexpr std::int64_t rounded_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }

/// Rows in consecutive parts of ``rows`` each, of which the last one may have fewer.
struct Parts {
  std::int64_t total, rows;
  std::int64_t count() const { return (total + rows - 1) / rows; }
  std::int64_t begin(std::int64_t part) const { return part * rows; }
  std::int64_t end(std::int64_t part) const { return std::min(total, (part + 1) * rows); }
  std::int64_t size(std::int64_t part) const { return end(part) - begin(part); }
};

/// Of a sum.
inline Parts parts_of_sum(std::int64_t total) {
  return {total, rounded_up(std::max<std::int64_t>(kFewRows, (total + kParts - 1) / kParts), kFewRows)};
}

/// Of work that each row is alone in: fewer rows at a time where there would be too few parts for many threads.
inline Parts tiles_of(std::int64_t total) {
  return {total, std::min<std::int64_t>(kTile, rounded_up(std::max<std::int64_t>(1, (total + 15) / 16), 6))};
}

/// Columns of a matrix whose rows are read a vector at a time, whatever the vectors.
constexpr int padded(std::int64_t columns) { return static_cast<int>(rounded_up(columns, 16)); }

/// Sums of a batch along r directions: see cpu/batch_sums.h.
constexpr std::int64_t count_of_sums(std::int64_t r) { return 3 * r + 2; }

/// Floats that batch_sums() works with, of products with so many columns.
constexpr std::int64_t room_of_sums(std::int64_t columns) { return kTile * (columns + kFeatures + 16); }

/// Floats that eigenvectors() works with, of so many columns: see cpu/small_algebra.h.
constexpr std::int64_t room_of_eigenvectors(std::int64_t columns) {
  return columns * (columns <= 16 ? 16 : columns <= 32 ? 32 : columns <= 64 ? 64 : 128);
}

/// Hands out room from an address on, or counts its bytes where that is null.
class Places {
 public:
  explicit Places(char* at) : at_(at) {}

  template <class T>
  void operator()(T*& pointer, std::int64_t count) {
    if (at_ != nullptr) pointer = reinterpret_cast<T*>(at_ + bytes_);
    bytes_ += rounded_up(count * static_cast<std::int64_t>(sizeof(T)), 64);
  }

  std::int64_t bytes() const { return bytes_; }

 private:
  char* at_;
  std::int64_t bytes_ = 0;
};

}  // namespace lip_fast::cpu

// The string ids of documents, or their payloads, back to back: name i is bytes[starts[i]] .. bytes[starts[i + 1]].
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

namespace stair {

struct Names {
  const int64_t* starts;  // [n + 1]
  const char* bytes;      // [n_bytes]
  int64_t n;
  int64_t n_bytes;

  // A damaged file may place a name anywhere: it is cut to the bytes.
  std::string_view operator[](int64_t i) const {
    const int64_t end = std::clamp<int64_t>(starts[i + 1], 0, n_bytes);
    const int64_t first = std::clamp<int64_t>(starts[i], 0, end);
    return {bytes + first, static_cast<size_t>(end - first)};
  }
};

// The numbers of the names in the order of their bytes, equal ones by number.
std::vector<int32_t> sort_names(const Names& names);

// starts[i] .. starts[i + 1] is where numbers[i] comes to lie, [n + 1], when the names of these numbers are taken.
void start_taken(const Names& names, const int64_t* numbers, int64_t n, int64_t* starts);
void take_names(const Names& names, const int64_t* numbers, int64_t n, char* bytes);

// found[i] is the number of the name that equals wanted[i], or -1; `order` [names.n] is sort_names'.
void find_names(const Names& names, const int32_t* order, const Names& wanted, int64_t* found);

}  // namespace stair

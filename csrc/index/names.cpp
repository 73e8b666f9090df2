#include "names.h"

#include <numeric>

namespace stair {

std::vector<int32_t> sort_names(const Names& names) {
  std::vector<int32_t> order(names.n);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const int compared = names[a].compare(names[b]);
    return compared < 0 || (compared == 0 && a < b);
  });
  return order;
}

void start_taken(const Names& names, const int64_t* numbers, int64_t n, int64_t* starts) {
  starts[0] = 0;
  for (int64_t i = 0; i < n; i++) starts[i + 1] = starts[i] + static_cast<int64_t>(names[numbers[i]].size());
}

void take_names(const Names& names, const int64_t* numbers, int64_t n, char* bytes) {
  for (int64_t i = 0; i < n; i++) bytes = std::copy_n(names[numbers[i]].data(), names[numbers[i]].size(), bytes);
}

void find_names(const Names& names, const int32_t* order, const Names& wanted, int64_t* found) {
  // A damaged file may hold any number.
  const auto number = [&](int64_t place) { return std::clamp<int64_t>(order[place], 0, names.n - 1); };
  for (int64_t i = 0; i < wanted.n; i++) {
    const std::string_view name = wanted[i];
    int64_t first = 0, end = names.n;
    while (first < end) {
      const int64_t middle = first + (end - first) / 2;
      if (names[number(middle)] < name) {
        first = middle + 1;
      } else {
        end = middle;
      }
    }
    found[i] = first < names.n && names[number(first)] == name ? number(first) : -1;
  }
}

}  // namespace stair

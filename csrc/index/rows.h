// Sparse rows as the engine wants them: checked, terms ascending and unique, weights positive and finite.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace stair {

constexpr int64_t kMaxInt32 = (int64_t{1} << 31) - 1;  // the most rows, and the most columns

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// Rows as the caller has them: entries starts[i] .. starts[i + 1] belong to row i, in any order.
template <class Term>
struct RowsView {
  const int64_t* starts;  // [n_rows + 1]
  const Term* terms;      // [n_entries]
  const float* weights;   // [n_entries]
  int64_t n_rows;
  int64_t n_entries;
  int64_t vocab_size;
  bool padded;  // an entry with term -1 is an empty slot
};

struct Rows {
  std::vector<int64_t> starts;
  std::vector<int32_t> terms;
  std::vector<float> weights;
  int64_t vocab_size = 0;

  // Throws std::invalid_argument that names the row, what was expected and what came. Weights of 0 are left out.
  template <class Term>
  explicit Rows(const RowsView<Term>& view);

  int64_t size() const { return static_cast<int64_t>(starts.size()) - 1; }
};

extern template Rows::Rows(const RowsView<int32_t>& view);
extern template Rows::Rows(const RowsView<int64_t>& view);

}  // namespace stair

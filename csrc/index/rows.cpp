#include "rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace stair {
namespace {

// The term above the bits of the weight: integers sort twice as fast as pairs.
using Entry = uint64_t;

Entry entry_of(int32_t term, float weight) {
  uint32_t bits;
  std::memcpy(&bits, &weight, sizeof bits);
  return static_cast<uint64_t>(term) << 32 | bits;
}

int32_t term_of(Entry entry) { return static_cast<int32_t>(entry >> 32); }

float weight_of(Entry entry) {
  const uint32_t bits = static_cast<uint32_t>(entry);
  float weight;
  std::memcpy(&weight, &bits, sizeof weight);
  return weight;
}

template <class Term>
void check_starts(const RowsView<Term>& view) {
  if (view.vocab_size > kMaxInt32 || view.n_rows > kMaxInt32) {
    fail("expected at most ", kMaxInt32, " rows and columns, got [", view.n_rows, ", ", view.vocab_size, "]");
  }
  if (view.starts[0] != 0 || view.starts[view.n_rows] > view.n_entries) {
    fail("expected row pointers from 0 to at most ", view.n_entries, " entries, got ", view.starts[0], " to ",
         view.starts[view.n_rows]);
  }
  for (int64_t row = 0; row < view.n_rows; row++) {
    if (view.starts[row + 1] < view.starts[row]) {
      fail("expected row pointers that never descend, got ", view.starts[row], " then ", view.starts[row + 1],
           " at row ", row);
    }
  }
}

// Copies a row that is as the engine wants it; false, with nothing of use written, when it is not.
template <class Term>
bool copy_row(const RowsView<Term>& view, int64_t row, int32_t* terms, float* weights) {
  const int64_t first = view.starts[row], size = view.starts[row + 1] - first;
  Term last = -1;
  bool sound = true;
  for (int64_t i = 0; i < size; i++) {
    const Term term = view.terms[first + i];
    const float weight = view.weights[first + i];
    sound &= term > last && weight > 0 && weight <= std::numeric_limits<float>::max();
    last = term;
    terms[i] = static_cast<int32_t>(term);
    weights[i] = weight;
  }
  return sound && last < view.vocab_size;
}

// The entries of any other row, checked and sorted, without those of weight 0.
template <class Term>
void sort_row(const RowsView<Term>& view, int64_t row, std::vector<Entry>& entries) {
  entries.clear();
  for (int64_t p = view.starts[row]; p < view.starts[row + 1]; p++) {
    const Term term = view.terms[p];
    const float weight = view.weights[p];
    if (!(weight >= 0) || std::isinf(weight)) {
      fail("expected finite weights >= 0 in float32, got ", weight, " in row ", row);
    }
    if (view.padded && term == -1) continue;
    if (term < 0 || term >= view.vocab_size) {
      fail("expected indices in [0, ", view.vocab_size, "), got ", term, " in row ", row);
    }
    entries.push_back(entry_of(static_cast<int32_t>(term), weight));
  }
  std::sort(entries.begin(), entries.end());
  for (size_t i = 1; i < entries.size(); i++) {
    if (term_of(entries[i]) == term_of(entries[i - 1])) {
      fail("expected unique indices within a row, got ", term_of(entries[i]), " twice in row ", row);
    }
  }
  const auto empty = [](Entry entry) { return weight_of(entry) == 0; };
  entries.erase(std::remove_if(entries.begin(), entries.end(), empty), entries.end());
}

}  // namespace

template <class Term>
Rows::Rows(const RowsView<Term>& view) : vocab_size(view.vocab_size) {
  check_starts(view);
  starts.reserve(view.n_rows + 1);
  terms.resize(view.starts[view.n_rows]);
  weights.resize(view.starts[view.n_rows]);
  starts.push_back(0);
  std::vector<Entry> entries;
  int64_t used = 0;
  for (int64_t row = 0; row < view.n_rows; row++) {
    if (copy_row(view, row, terms.data() + used, weights.data() + used)) {
      used += view.starts[row + 1] - view.starts[row];
    } else {
      sort_row(view, row, entries);
      for (const Entry entry : entries) {
        terms[used] = term_of(entry);
        weights[used++] = weight_of(entry);
      }
    }
    starts.push_back(used);
  }
  terms.resize(used);
  weights.resize(used);
}

template Rows::Rows(const RowsView<int32_t>& view);
template Rows::Rows(const RowsView<int64_t>& view);

}  // namespace stair

#include "reorder.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "layout.h"

namespace stair {
namespace {

constexpr int kIterations = 3;  // of moving rows to the half whose mean is nearer
constexpr int kTries = 16;      // rows among which the least like a given one is sought

class Halver {
 public:
  explicit Halver(const Rows& rows) : rows_(rows), axis_(rows.vocab_size, 0.0f), scaled_(rows.size()) {
    for (int64_t row = 0; row < rows.size(); row++) {
      double square = 0;
      for (int64_t p = rows.starts[row]; p < rows.starts[row + 1]; p++) {
        square += static_cast<double>(rows.weights[p]) * rows.weights[p];
      }
      scaled_[row] = square > 0 ? 1 / std::sqrt(square) : 0;
    }
  }

  // Orders rows[0 .. n) and leaves whole blocks together.
  void halve(int64_t* rows, int64_t n) {
    if (n <= kBlock) {
      std::sort(rows, rows + n);
      return;
    }
    const int64_t half = ceil_div(ceil_div(n, kBlock), 2) * kBlock;
    start(rows, n);
    for (int i = 0; i < kIterations; i++) {
      divide(rows, n, half);
      if (i + 1 < kIterations) turn(rows, n, half);
    }
    clear(rows, n);
    halve(rows, half);
    halve(rows + half, n - half);
  }

 private:
  // The axis from one row to another that is not like it.
  void start(const int64_t* rows, int64_t n) {
    const int64_t one = rows[random() % n];
    add(one, 1);
    int64_t other = one;
    double least = HUGE_VAL;
    for (int i = 0; i < kTries; i++) {
      const int64_t row = rows[random() % n];
      const double like = along(row);
      if (row != one && like < least) least = like, other = row;
    }
    add(other, -1);
  }

  // The rows that reach furthest along the axis come first.
  void divide(int64_t* rows, int64_t n, int64_t half) {
    places_.clear();
    for (int64_t i = 0; i < n; i++) {
      if (i + 4 < n) fetch_row(rows[i + 4]);
      places_.emplace_back(-along(rows[i]), rows[i]);
    }
    std::nth_element(places_.begin(), places_.begin() + half, places_.end());
    for (int64_t i = 0; i < n; i++) rows[i] = places_[i].second;
  }

  // The axis from the mean of the second half to that of the first.
  void turn(const int64_t* rows, int64_t n, int64_t half) {
    clear(rows, n);
    for (int64_t i = 0; i < n; i++) {
      add(rows[i], i < half ? 1 / static_cast<double>(half) : -1 / static_cast<double>(n - half));
    }
  }

  void clear(const int64_t* rows, int64_t n) {
    // Fewer rows than that have fewer entries than the axis.
    if (n * 64 > rows_.vocab_size) {
      std::fill(axis_.begin(), axis_.end(), 0.0f);
      return;
    }
    for (int64_t i = 0; i < n; i++) {
      for (int64_t p = rows_.starts[rows[i]]; p < rows_.starts[rows[i] + 1]; p++) axis_[rows_.terms[p]] = 0;
    }
  }

  // In double: in float the products of weights near the end of its range are infinite.
  double along(int64_t row) const {
    double sum = 0;
    for (int64_t p = rows_.starts[row]; p < rows_.starts[row + 1]; p++) {
      sum += static_cast<double>(axis_[rows_.terms[p]]) * rows_.weights[p];
    }
    return sum * scaled_[row];
  }

  void add(int64_t row, double factor) {
    factor *= scaled_[row];
    for (int64_t p = rows_.starts[row]; p < rows_.starts[row + 1]; p++) {
      axis_[rows_.terms[p]] += static_cast<float>(factor * rows_.weights[p]);
    }
  }

  void fetch_row(int64_t row) const {
    __builtin_prefetch(rows_.terms.data() + rows_.starts[row]);
    __builtin_prefetch(rows_.weights.data() + rows_.starts[row]);
    asm volatile("" : : : "memory");  // GCC drops calls of functions that only prefetch
  }

  uint64_t random() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }

  const Rows& rows_;
  std::vector<float> axis_;     // [V], 0 between halvings
  std::vector<double> scaled_;  // 1 / length of each row: of a short one a float cannot hold it
  std::vector<std::pair<double, int64_t>> places_;
  uint64_t state_ = 88172645463325252u;
};

}  // namespace

std::vector<int64_t> cluster(const Rows& rows) {
  std::vector<int64_t> order(rows.size());
  std::iota(order.begin(), order.end(), 0);
  Halver(rows).halve(order.data(), rows.size());
  return order;
}

}  // namespace stair

#pragma once

#include <cstdint>
#include <vector>

#include "layout.h"
#include "rows.h"

namespace stair {

// The arrays of layout.h, to be filled.
struct NewLayout {
  void* row_starts;
  void* row_terms;
  void* row_weights;
  bool half_weights;
  int64_t* term_starts;
  uint32_t* segments;
  uint16_t* documents;
  uint8_t* codes;
  float* units;
  int32_t* frequent_terms;
  float* frequent_means;
  uint8_t* block_max;  // all 0
  Group* groups;       // all 0
};

// The terms that get block maxima and groups.
std::vector<int32_t> frequent_terms(const Rows& rows, bool compact);

// Fills the arrays with the rows taken in `order`: document d is row order[d]. With half_weights every weight must be
// a float16 number.
void build(const Rows& rows, const int64_t* order, const std::vector<int32_t>& frequent, const NewLayout& out);

}  // namespace stair

#pragma once

#include <cstdint>
#include <vector>

#include "rows.h"

namespace stair {

// An order of the rows in which neighbours share terms, so that the maxima of a block are close to its weights: rows
// are halved again and again, each half about its own mean, down to blocks. The same rows give the same order.
std::vector<int64_t> cluster(const Rows& rows);

}  // namespace stair

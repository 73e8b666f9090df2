#include "layout.h"

#include <cmath>

#include "rows.h"

namespace stair {

void Layout::check() const {
  if (n_documents > kMaxInt32) fail("expected at most ", kMaxInt32, " documents, got ", n_documents);
  if (vocab_size > kMaxInt32) fail("expected at most ", kMaxInt32, " columns, got ", vocab_size);
  if (term_starts[0] != 0 || term_starts[vocab_size] != n_postings) {
    fail("expected term_starts from 0 to ", n_postings, ", got ", term_starts[0], " to ", term_starts[vocab_size]);
  }
  for (int64_t term = 0; term < vocab_size; term++) {
    if (term_starts[term + 1] < term_starts[term]) {
      fail("expected term_starts that never descend, got ", term_starts[term], " then ", term_starts[term + 1]);
    }
    if (!(units[term] >= 0) || std::isinf(units[term])) {
      fail("expected finite units >= 0, got ", units[term], " for term ", term);
    }
  }
  for (int64_t i = 0; i < n_frequent; i++) {
    if (!(frequent_means[i] >= 0) || std::isinf(frequent_means[i])) {
      fail("expected finite frequent_means >= 0, got ", frequent_means[i], " for term ", frequent_terms[i]);
    }
    if (frequent_terms[i] <= (i > 0 ? frequent_terms[i - 1] : -1) || frequent_terms[i] >= vocab_size) {
      fail("expected frequent_terms that ascend in [0, ", vocab_size, "), got ", frequent_terms[i]);
    }
  }
}

}  // namespace stair

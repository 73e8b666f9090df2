// The CUDA library. It registers no kernel yet: it proves that the toolkit, the ABI-stable headers and the loader
// agree.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(stair, CUDA, m) { (void)m; }

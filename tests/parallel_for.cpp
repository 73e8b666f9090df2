// torch's parallel_for for ThreadSanitizer: each chunk on a std::thread of its own, whose start and end it sees. Two
// chunks that touch the same memory are found although they may never have run at the same moment.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <thread>
#include <vector>

extern "C" AOTITorchError __wrap_torch_parallel_for(int64_t begin, int64_t end, int64_t grain, ParallelFunc body,
                                                    void* context) {
  uint32_t most = 1;
  torch_get_num_threads(&most);
  int64_t chunk = std::max<int64_t>({1, grain, (end - begin + most - 1) / most});
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += chunk)
    threads.emplace_back(body, first, std::min(first + chunk, end), context);
  for (auto& thread : threads) thread.join();
  return 0;
}

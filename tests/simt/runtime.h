// A grid of CUDA threads on one OS thread: a fiber a thread, a block after the other. A thread runs until it waits at a
// barrier or at a warp's meeting; which one runs next is the order of STAIR_SIMT_ORDER (forward, reverse, shuffled or
// shuffled:SEED). A fault is one message on stderr and abort().
//
// runtime.cpp and fiber.cpp are compiled without sanitizers and tell them what they need to know; the kernels are
// compiled with them. ThreadSanitizer sees that B comes after A only where CUDA says so: at barriers and __syncwarp,
// not at shuffles and votes, not from one block to the next, whatever the order of the run.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace simt {

// Where in a kernel something was called.
struct Site {
  const char *what, *file;
  int line;
};

// What the lanes of a warp brought to a meeting.
class Meeting;

// Runs the kernel of every thread of every block to its end.
void launch(dim3 grid, dim3 block, size_t dynamic_shared_bytes, const std::function<void()>& kernel);

// The thread that runs.
uint3 thread_idx();
uint3 block_idx();
dim3 block_dim();
dim3 grid_dim();
int lane();

// __syncthreads: returns how many of the block's threads voted.
int barrier(bool vote, Site site);

// Waits for every lane of `mask` that has not left the kernel. The result can be read until the lane's next meeting.
// Only with `orders_memory` is what they did before visible to all of them after.
const Meeting& meet(uint32_t mask, uint64_t value, bool orders_memory, Site site);
// What `lane` brought; a fault where it did not take part.
uint64_t brought(const Meeting& meeting, int lane, Site site);
uint32_t members(const Meeting& meeting);

// The block's copy of a shared variable: filled with bytes that depend on the order, so that a result that depends on
// memory nobody has written differs; of exactly this size, so that AddressSanitizer sees an access past it.
void* shared(const void* variable, size_t bytes);
void* dynamic_shared();

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace simt

// Preloaded into a process: operator new, which fails when it is told to.
#include <stdlib.h>

#include <atomic>
#include <new>

static std::atomic<long> left{-1};

extern "C" {

// The call after `number` others fails.
void fail_after(long number) { left = number; }

// Whether a call that was to fail is still to come; none fails any more.
int did_not_fail() { return left.exchange(-1) >= 0; }
}

void* operator new(size_t size) {
  if (left >= 0 && left-- == 0) throw std::bad_alloc();
  void* block = malloc(size > 0 ? size : 1);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

void operator delete(void* block) noexcept { free(block); }

void operator delete(void* block, size_t) noexcept { free(block); }

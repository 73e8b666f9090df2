// Preloaded into a process: the bytes that are live between malloc and free (and their kin), and the most there were.
// memory.py asks for both. glibc only: the allocations are its own, under their other names.
#include <errno.h>
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>

#include <atomic>

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);
}

static std::atomic<int64_t> live{0}, peak{0};

static void* counted(void* block) {
  if (block == nullptr) return block;
  const int64_t size = malloc_usable_size(block);
  const int64_t now = live.fetch_add(size) + size;
  int64_t most = peak.load();
  while (now > most && !peak.compare_exchange_weak(most, now)) {
  }
  return block;
}

extern "C" {

int64_t allocations_restart() {
  peak = live.load();
  return live;
}

int64_t allocations_peak() { return peak; }

void* malloc(size_t size) { return counted(__libc_malloc(size)); }

void* calloc(size_t count, size_t size) { return counted(__libc_calloc(count, size)); }

void free(void* block) {
  if (block != nullptr) live -= malloc_usable_size(block);
  __libc_free(block);
}

void* realloc(void* block, size_t size) {
  const int64_t before = block == nullptr ? 0 : malloc_usable_size(block);
  void* moved = __libc_realloc(block, size);
  if (moved != nullptr || size == 0) live -= before;
  return counted(moved);
}

void* memalign(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }

void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void** block, size_t alignment, size_t size) {
  if (alignment % sizeof(void*) != 0 || (alignment & (alignment - 1)) != 0 || alignment == 0) return EINVAL;
  void* made = memalign(alignment, size);
  if (made == nullptr) return ENOMEM;
  *block = made;
  return 0;
}
}

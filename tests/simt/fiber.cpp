#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#ifdef SIMT_ASAN
extern "C" void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* fake_stack_save, const void** bottom_old, size_t* size_old);
#endif
#ifdef SIMT_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

// Keeps what the System V ABI has a function keep, and exchanges the stacks.
extern "C" void simt_switch(void** save, void* load);
asm(R"(
.text
.hidden simt_switch
.type simt_switch,@function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");

namespace simt {
namespace {

constexpr size_t kPage = 4096;
#if defined(SIMT_ASAN) || defined(SIMT_TSAN)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr int kKeptRegisters = 6;

}  // namespace

Fiber::Fiber(void (*entry)()) : stack_bytes_(kStackBytes), own_(true) {
  void* memory = mmap(nullptr, kPage + stack_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) {
    std::perror("simt: no memory for a stack");
    std::abort();
  }
  stack_ = static_cast<char*>(memory) + kPage;
  auto* top = reinterpret_cast<void**>(stack_ + stack_bytes_);
  *--top = nullptr;  // where `entry` would return to; the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kKeptRegisters; ++i) *--top = nullptr;
  stack_pointer_ = top;
#ifdef SIMT_TSAN
  thread_sanitizer_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  if (!own_) return;
#ifdef SIMT_TSAN
  __tsan_destroy_fiber(thread_sanitizer_);
#endif
  munmap(stack_ - kPage, kPage + stack_bytes_);
}

void Fiber::adopt_os_thread() {
#ifdef SIMT_ASAN
  pthread_attr_t attributes;
  void* bottom = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &stack_bytes_);
  pthread_attr_destroy(&attributes);
  stack_ = static_cast<char*>(bottom);
#endif
#ifdef SIMT_TSAN
  thread_sanitizer_ = __tsan_get_current_fiber();
#endif
}

void Fiber::switch_to(Fiber& other) {
#ifdef SIMT_ASAN
  __sanitizer_start_switch_fiber(&fake_stack_, other.stack_, other.stack_bytes_);
#endif
#ifdef SIMT_TSAN
  constexpr unsigned kOrdersNothing = 1;
  __tsan_switch_to_fiber(other.thread_sanitizer_, kOrdersNothing);
#endif
  simt_switch(&stack_pointer_, other.stack_pointer_);
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::started() {
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

#ifdef SIMT_TSAN
void release(void* place) { __tsan_release(place); }
void acquire(void* place) { __tsan_acquire(place); }
Unwatched::Unwatched() {
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
Unwatched::~Unwatched() {
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}
#else
void release(void*) {}
void acquire(void*) {}
Unwatched::Unwatched() {}
Unwatched::~Unwatched() {}
#endif

}  // namespace simt

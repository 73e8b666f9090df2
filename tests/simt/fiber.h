// Threads of control on one OS thread that hand over by themselves; the sanitizers are told of every switch.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__) || defined(SIMT_ADDRESS_SANITIZER)
#define SIMT_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__) || defined(SIMT_THREAD_SANITIZER)
#define SIMT_TSAN 1
#endif

namespace simt {

#ifdef SIMT_TSAN
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

class Fiber {
 public:
  Fiber() = default;  // the OS thread itself
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Goes on with `other`; returns when somebody switches back. To ThreadSanitizer a switch orders nothing.
  void switch_to(Fiber& other);
  // What `this`, an OS thread, needs to be known by before it switches.
  void adopt_os_thread();
  // To be called first in `entry`.
  static void started();

 private:
  void* stack_pointer_ = nullptr;
  char* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  void* thread_sanitizer_ = nullptr;
  void* fake_stack_ = nullptr;
  bool own_ = false;
};

// Everything before a release of `place` happens before what comes after an acquire of it, as far as ThreadSanitizer
// knows.
void release(void* place);
void acquire(void* place);

// Memory that is taken and filled here counts as nobody's access.
class Unwatched {
 public:
  Unwatched();
  ~Unwatched();
};

}  // namespace simt

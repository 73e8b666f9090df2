// The threads of a block, and what runtime.cpp (who runs) and waiting.cpp (who waits for whom) know of them.
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "fiber.h"
#include "runtime.h"

namespace simt {

constexpr int kWarp = 32;
constexpr size_t kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 227 << 10;  // of sm_90; what a kernel takes on the others is read from its cubin

class Meeting {
 public:
  uint32_t mask = 0, arrived = 0, readers = 0;
  bool open = false;
  Site site{};
  uint64_t value[kWarp];
};

struct Block;

enum class State { kReady, kWaiting, kDone };

struct Thread {
  std::unique_ptr<Fiber> fiber;
  Block* block;
  uint3 index;
  int linear;
  int place;  // in the order
  State state;
  Site waits_at;
  int votes;       // the outcome of the barrier that it came from
  Meeting* reads;  // the last meeting that it took part in
};

struct Warp {
  uint32_t alive = 0;
  std::vector<std::unique_ptr<Meeting>> meetings;
};

struct Barrier {
  int arrived = 0, votes = 0;
  unsigned number = 0;
  Site site{};
  char order[2];  // what ThreadSanitizer knows the even and the odd ones by
};

struct Shared {
  size_t bytes;
  void* data;
};

struct Block {
  uint3 index;
  int alive;
  std::vector<Warp> warps;
  Barrier barrier;
  std::map<const void*, Shared> shared;
};

// The block that runs, and of its threads the one that does.
extern std::vector<std::unique_ptr<Thread>>& threads;
extern Thread* current;
extern unsigned char poison;  // what shared memory is filled with

void set_state(Thread& thread, State state);
// Lets others run until somebody makes the running thread ready again.
void wait_at(Site site);
// The running thread has come to the end of the kernel: nobody waits for it any more.
void leave_waiting();

}  // namespace simt

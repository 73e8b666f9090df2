// Who waits for whom: barriers of a block, meetings of a warp's lanes, and the memory that a block shares.
#include <cstdlib>
#include <cstring>

#include "block.h"

namespace simt {
namespace {

bool same_place(Site a, Site b) {
  return a.line == b.line && !std::strcmp(a.file, b.file) && !std::strcmp(a.what, b.what);
}

void open_barrier(Barrier& barrier) {
  for (auto& thread : threads) {
    if (thread->state == State::kDone) continue;
    thread->votes = barrier.votes;
    set_state(*thread, State::kReady);
  }
  barrier.arrived = barrier.votes = 0;
  ++barrier.number;
}

void close_meeting(Meeting& meeting, int warp) {
  meeting.open = false;
  meeting.readers = meeting.arrived;
  for (int lane = 0; lane < kWarp; ++lane)
    if (meeting.arrived >> lane & 1) set_state(*threads[warp * kWarp + lane], State::kReady);
}

void stop_reading(Thread& thread) {
  if (thread.reads) thread.reads->readers &= ~(1u << thread.linear % kWarp);
  thread.reads = nullptr;
}

}  // namespace

void leave_waiting() {
  Block& block = *current->block;
  Warp& warp = block.warps[current->linear / kWarp];
  set_state(*current, State::kDone);
  stop_reading(*current);
  warp.alive &= ~(1u << current->linear % kWarp);
  --block.alive;
  if (block.barrier.arrived && block.barrier.arrived == block.alive) open_barrier(block.barrier);
  for (auto& meeting : warp.meetings)
    if (meeting->open && !(meeting->mask & warp.alive & ~meeting->arrived))
      close_meeting(*meeting, current->linear / kWarp);
}

int barrier(bool vote, Site site) {
  Block& block = *current->block;
  Barrier& barrier = block.barrier;
  if (barrier.arrived && !same_place(barrier.site, site))
    fail("threads of a block wait at two barriers: %s at %s:%d and %s at %s:%d", barrier.site.what, barrier.site.file,
         barrier.site.line, site.what, site.file, site.line);
  char* order_of = &barrier.order[barrier.number % 2];
  release(order_of);
  barrier.site = site;
  barrier.votes += vote;
  Thread* me = current;
  if (++barrier.arrived == block.alive)
    open_barrier(barrier);
  else
    wait_at(site);
  acquire(order_of);
  return me->votes;
}

const Meeting& meet(uint32_t mask, uint64_t value, bool orders_memory, Site site) {
  Thread& me = *current;
  Warp& warp = me.block->warps[me.linear / kWarp];
  uint32_t bit = 1u << lane();
  if (!(mask & bit))
    fail("%s at %s:%d: the mask %#x is without the calling lane", site.what, site.file, site.line, mask);
  stop_reading(me);
  Meeting *found = nullptr, *free = nullptr;
  for (auto& meeting : warp.meetings) {
    if (meeting->mask != mask) continue;  // with other lanes, ThreadSanitizer would know it by their order
    if (meeting->open) found = meeting.get();
    if (!meeting->open && !meeting->readers) free = meeting.get();
  }
  if (!found && !free) {
    Unwatched scope;
    warp.meetings.push_back(std::make_unique<Meeting>());
    free = warp.meetings.back().get();
  }
  if (!found) {
    found = free;
    found->mask = mask, found->arrived = 0, found->open = true, found->site = site;
  }
  if (!same_place(found->site, site))
    fail("lanes of a warp wait at two places: %s at %s:%d and %s at %s:%d", found->site.what, found->site.file,
         found->site.line, site.what, site.file, site.line);
  found->value[lane()] = value;
  found->arrived |= bit;
  me.reads = found;
  if (orders_memory) release(found);
  if (!(mask & warp.alive & ~found->arrived))
    close_meeting(*found, me.linear / kWarp);
  else
    wait_at(site);
  if (orders_memory) acquire(found);
  return *found;
}

uint64_t brought(const Meeting& meeting, int lane, Site site) {
  if (lane < 0 || lane >= kWarp || !(meeting.arrived >> lane & 1))
    fail("%s at %s:%d: reads lane %d, which takes no part", site.what, site.file, site.line, lane);
  return meeting.value[lane];
}

uint32_t members(const Meeting& meeting) { return meeting.arrived; }

void* shared(const void* variable, size_t bytes) {
  auto& copies = current->block->shared;
  if (auto found = copies.find(variable); found != copies.end()) return found->second.data;
  Unwatched scope;
  void* data = nullptr;
  if (posix_memalign(&data, 128, bytes) != 0) fail("no memory for %zu bytes of shared memory", bytes);
  for (size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(data)[i] = poison;
  size_t taken = bytes;
  for (auto& copy : copies) taken += copy.second.bytes;
  if (taken > kMaxSharedBytes) fail("a block with %zu bytes of shared memory", taken);
  copies[variable] = {bytes, data};
  return data;
}

}  // namespace simt

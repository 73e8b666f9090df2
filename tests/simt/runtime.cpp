// Who runs: the orders of threads and blocks, a launch from its beginning to its end, and what a fault says.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <random>
#include <string>

#include "block.h"

namespace simt {

std::vector<std::unique_ptr<Thread>>& threads = *new std::vector<std::unique_ptr<Thread>>;
Thread* current = nullptr;
unsigned char poison;

namespace {

enum class Order { kForward, kReverse, kShuffled };

// The launch that runs.
dim3 grid_size, block_size;
size_t dynamic_bytes;
const std::function<void()>* kernel_body;
std::vector<int>& turn = *new std::vector<int>;  // thread of each place in the order
uint64_t ready[kMaxThreads / 64];                // which places can go on
Fiber& host = *new Fiber;
Order order;
std::mt19937& generator = *new std::mt19937;
char launch_order;

void read_order() {
  const char* text = std::getenv("STAIR_SIMT_ORDER");
  std::string name = text ? text : "forward";
  unsigned seed = 1;
  if (size_t colon = name.find(':'); colon != std::string::npos) {
    seed = unsigned(std::atoi(name.c_str() + colon + 1));
    name.resize(colon);
  }
  if (name != "forward" && name != "reverse" && name != "shuffled")
    fail("STAIR_SIMT_ORDER: expected forward, reverse, shuffled or shuffled:SEED, got %s", text);
  order = name == "forward" ? Order::kForward : name == "reverse" ? Order::kReverse : Order::kShuffled;
  generator.seed(seed);
  poison = order == Order::kForward ? 0xff : order == Order::kReverse ? 0x00 : 0x7f;
}

std::vector<int> arranged(int count) {
  std::vector<int> items(count);
  for (int i = 0; i < count; ++i) items[i] = order == Order::kReverse ? count - 1 - i : i;
  if (order == Order::kShuffled) std::shuffle(items.begin(), items.end(), generator);
  return items;
}

// The first thread in the order that can go on, so that it runs as far ahead of the others as it can; shuffled, any.
Thread* next_ready() {
  constexpr unsigned kWords = kMaxThreads / 64;
  unsigned start = order == Order::kShuffled ? generator() % kWords : 0;
  for (unsigned i = 0; i < kWords; ++i) {
    unsigned word = (start + i) % kWords;
    uint64_t bits = ready[word];
    if (!bits) continue;
    if (order == Order::kShuffled)
      for (uint64_t some = generator(); bits & some; some = generator() | some << 32) bits &= some;
    return threads[turn[word * 64 + __builtin_ctzll(bits)]].get();
  }
  return nullptr;
}

void hand_over() {
  Thread *me = current, *next = next_ready();
  if (next == me) return;
  current = next;
  me->fiber->switch_to(next ? *next->fiber : host);
}

void run_thread() {
  Fiber::started();
  for (;;) {
    (*kernel_body)();
    leave_waiting();
    release(&launch_order);
    hand_over();
  }
}

[[noreturn]] void report_deadlock() {
  std::map<std::string, int> waiting;
  int gone = 0;
  for (auto& thread : threads) {
    const Site& site = thread->waits_at;
    if (thread->state == State::kDone) ++gone;
    if (thread->state == State::kWaiting)
      ++waiting[std::string(site.what) + " at " + site.file + ":" + std::to_string(site.line)];
  }
  uint3 block = threads[0]->block->index;
  std::fprintf(stderr, "simt: deadlock in block (%u, %u, %u):", block.x, block.y, block.z);
  for (auto& [place, count] : waiting) std::fprintf(stderr, " %d threads wait for others in %s;", count, place.c_str());
  std::fprintf(stderr, " %d have left the kernel\n", gone);
  std::abort();
}

void run_block(Block& block, int count) {
  turn = arranged(count);
  std::vector<int> place_of(count);
  for (int place = 0; place < count; ++place) place_of[turn[place]] = place;
  if (kThreadSanitizer) threads.clear();  // a thread of one block has nothing to do with that of another
  if (threads.size() > size_t(count)) threads.resize(count);
  while (threads.size() < size_t(count)) {
    threads.push_back(std::make_unique<Thread>());
    threads.back()->fiber = std::make_unique<Fiber>(&run_thread);
  }
  block.alive = count;
  block.warps = std::vector<Warp>((count + kWarp - 1) / kWarp);
  for (int t = 0; t < count; ++t) {
    Thread& thread = *threads[t];
    unsigned x = block_size.x, y = block_size.y;
    thread.block = &block;
    thread.index = {t % x, t / x % y, t / (x * y)};
    thread.linear = t;
    thread.place = place_of[t];
    set_state(thread, State::kReady);
    thread.reads = nullptr;
    block.warps[t / kWarp].alive |= 1u << t % kWarp;
  }
  current = next_ready();
  host.switch_to(*current->fiber);
  if (block.alive) report_deadlock();
}

}  // namespace

void set_state(Thread& thread, State state) {
  uint64_t bit = uint64_t(1) << thread.place % 64, &word = ready[thread.place / 64];
  thread.state = state;
  word = state == State::kReady ? word | bit : word & ~bit;
}

void wait_at(Site site) {
  set_state(*current, State::kWaiting);
  current->waits_at = site;
  hand_over();
}

void fail(const char* format, ...) {
  std::fputs("simt: ", stderr);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  if (current) {
    uint3 block = current->block->index, thread = current->index;
    std::fprintf(stderr, "\n  block (%u, %u, %u), thread (%u, %u, %u)", block.x, block.y, block.z, thread.x, thread.y,
                 thread.z);
  }
  std::fputc('\n', stderr);
  std::abort();
}

void launch(dim3 grid, dim3 block, size_t dynamic_shared_bytes, const std::function<void()>& kernel) {
  static std::mutex& one_at_a_time = *new std::mutex;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  size_t count = size_t(block.x) * block.y * block.z, blocks = size_t(grid.x) * grid.y * grid.z;
  if (count == 0 || count > kMaxThreads || blocks == 0 || grid.y > 65535 || grid.z > 65535)
    fail("launch of %zu blocks (%u, %u, %u) of %zu threads", blocks, grid.x, grid.y, grid.z, count);
  if (dynamic_shared_bytes > kMaxSharedBytes) fail("launch with %zu bytes of shared memory", dynamic_shared_bytes);
  read_order();
  host.adopt_os_thread();
  grid_size = grid, block_size = block, dynamic_bytes = dynamic_shared_bytes, kernel_body = &kernel;
  std::vector<Block> all(kThreadSanitizer ? blocks : 1);
  auto give_back = [](Block& done) {
    for (auto& entry : done.shared) std::free(entry.second.data);
    done = Block{};
  };
  std::vector<int> places = arranged(int(blocks));
  for (size_t i = 0; i < blocks; ++i) {
    Block& running = all[kThreadSanitizer ? i : 0];
    unsigned linear = unsigned(places[i]);
    running.index = {linear % grid.x, linear / grid.x % grid.y, linear / (grid.x * grid.y)};
    run_block(running, int(count));
    if (!kThreadSanitizer) give_back(running);
  }
  current = nullptr;
  acquire(&launch_order);
  for (Block& done : all) give_back(done);
}

uint3 thread_idx() { return current->index; }
uint3 block_idx() { return current->block->index; }
dim3 block_dim() { return block_size; }
dim3 grid_dim() { return grid_size; }
int lane() { return current->linear % kWarp; }

void* dynamic_shared() { return shared(&dynamic_bytes, dynamic_bytes); }

}  // namespace simt

// Executes AMX instructions on a CPU that has none, so that the compiled AMX kernels are tested on any x86-64 machine:
// preload it, and every AMX instruction that traps (SIGILL) is decoded and done here. Any other goes on to be fatal, as
// do a tile used before its configuration and a shape that the instruction does not allow.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, LDTILECFG to TILEZERO and TDPBF16PS.
#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kTiles = 8, kMaxRows = 16, kMaxRowBytes = 64;

struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64);

struct Tile {
  uint8_t bytes[kMaxRows][kMaxRowBytes];
};

thread_local Config config;
thread_local Tile tiles[kTiles];
std::atomic<long> executed{0};

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "AMX emulator: %s\n", what);
  std::abort();
}

int checked(int tile) {
  if (config.palette != 1) fail("a tile was used before LDTILECFG");
  if (tile >= kTiles || config.rows[tile] == 0 || config.row_bytes[tile] == 0) fail("a tile without a shape was used");
  return tile;
}

void load_config(const void* from) {
  std::memcpy(&config, from, sizeof config);
  if (config.palette > 1 || config.start_row != 0) fail("LDTILECFG: palette and start row must be 1 and 0");
  for (int i = 0; i < 16; ++i)
    if (config.rows[i] > kMaxRows || config.row_bytes[i] > kMaxRowBytes) fail("LDTILECFG: a tile is too large");
  std::memset(tiles, 0, sizeof tiles);
}

void load_tile(int to, const uint8_t* from, int64_t stride) {
  std::memset(&tiles[checked(to)], 0, sizeof(Tile));
  for (int row = 0; row < config.rows[to]; ++row)
    std::memcpy(tiles[to].bytes[row], from + row * stride, config.row_bytes[to]);
}

void store_tile(int from, uint8_t* to, int64_t stride) {
  checked(from);
  for (int row = 0; row < config.rows[from]; ++row)
    std::memcpy(to + row * stride, tiles[from].bytes[row], config.row_bytes[from]);
}

float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

float bfloat16(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  uint32_t wide = uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return flushed(x);
}

// sum[m][n] += sum over k of a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1]: even and odd terms apart, then together
void multiply(int sum, int a, int b) {
  checked(sum), checked(a), checked(b);
  int M = config.rows[sum], N = config.row_bytes[sum] / 4, K = config.rows[b];
  if (config.rows[a] != M || config.row_bytes[a] != 4 * K || config.row_bytes[b] != 4 * N || sum == a || sum == b ||
      a == b)
    fail("TDPBF16PS: the shapes of the tiles do not fit");
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      float even = 0, odd = 0, total;
      for (int k = 0; k < K; ++k) {
        const uint8_t *left = tiles[a].bytes[m] + 4 * k, *right = tiles[b].bytes[k] + 4 * n;
        even = flushed(std::fma(bfloat16(left), bfloat16(right), even));
        odd = flushed(std::fma(bfloat16(left + 2), bfloat16(right + 2), odd));
      }
      uint8_t* at = tiles[sum].bytes[m] + 4 * n;
      std::memcpy(&total, at, 4);
      total = flushed(flushed(total) + flushed(even + odd));
      std::memcpy(at, &total, 4);
    }
  ++executed;
}

// The fields of a VEX-encoded instruction (volume 2, section 2.3).
struct Instruction {
  Instruction(const uint8_t* at, const greg_t* registers) {
    if (at[0] != 0xc4 || (at[1] & 0x1f) != 2) return;  // three-byte VEX, map 0F38
    reg_high = !(at[1] & 0x80), index_high = !(at[1] & 0x40), base_high = !(at[1] & 0x20);
    if (at[2] & 0x84) return;  // W0, 128 bits
    prefix = at[2] & 3, third = ~at[2] >> 3 & 15;
    opcode = at[3];
    mod = at[4] >> 6, reg = (at[4] >> 3 & 7) | reg_high << 3, rm = at[4] & 7;
    length = 5;
    if (mod != 3) read_address(at, registers);
    valid = true;
  }

  void read_address(const uint8_t* at, const greg_t* registers) {
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    int base = rm;
    bool no_base = false;
    if (rm == 4) {
      uint8_t sib = at[length++];
      base = sib & 7;
      int index = (sib >> 3 & 7) | index_high << 3;
      stride = index == 4 ? 0 : int64_t(registers[order[index]]) << (sib >> 6);
      no_base = base == 5 && mod == 0;
    } else {
      no_base = base == 5 && mod == 0;  // relative to the next instruction
    }
    address = no_base ? 0 : uint64_t(registers[order[base | base_high << 3]]);
    if (mod == 1) address += int64_t(int8_t(at[length++]));
    if (mod == 2 || no_base) {
      int32_t offset;
      std::memcpy(&offset, at + length, 4);
      address += int64_t(offset);
      length += 4;
    }
    if (no_base && rm != 4) address += uint64_t(registers[REG_RIP]) + length;
  }

  bool valid = false;
  int reg_high, index_high, base_high, prefix, third, opcode, mod, reg, rm, length;
  uint64_t address = 0;
  int64_t stride = 0;
};

bool execute(const Instruction& it) {
  enum { kNone, k66, kF3, kF2 };
  auto* memory = reinterpret_cast<uint8_t*>(it.address);
  if (it.opcode == 0x49 && it.prefix == kNone && it.mod != 3)
    load_config(memory);
  else if (it.opcode == 0x49 && it.prefix == kNone && it.mod == 3)
    config = Config{};  // TILERELEASE
  else if (it.opcode == 0x49 && it.prefix == k66 && it.mod != 3)
    std::memcpy(memory, &config, sizeof config);
  else if (it.opcode == 0x49 && it.prefix == kF2 && it.mod == 3)
    std::memset(&tiles[checked(it.reg)], 0, sizeof(Tile));
  else if (it.opcode == 0x4b && (it.prefix == kF2 || it.prefix == k66))
    load_tile(it.reg, memory, it.stride);
  else if (it.opcode == 0x4b && it.prefix == kF3)
    store_tile(it.reg, memory, it.stride);
  else if (it.opcode == 0x5c && it.prefix == kF3 && it.mod == 3)
    multiply(it.reg, it.rm | it.base_high << 3, it.third);
  else
    return false;
  return true;
}

void on_illegal_instruction(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  Instruction it(reinterpret_cast<const uint8_t*>(registers[REG_RIP]), registers);
  if (!it.valid || !execute(it)) {
    signal(SIGILL, SIG_DFL);  // not ours: happens again, and ends the process
    return;
  }
  registers[REG_RIP] += it.length;
}

}  // namespace

// Asked when the instruction set is chosen: from here on AMX instructions are executed.
extern "C" bool stair_emulates_amx() {
  struct sigaction action = {};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  return sigaction(SIGILL, &action, nullptr) == 0;
}

// Products of tiles so far.
extern "C" long stair_amx_products() { return executed; }

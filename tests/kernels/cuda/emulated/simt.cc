#include "simt.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

// Saves this fiber's registers and stack and goes on where `to` was saved: what the System V ABI
// wants kept of a call.
extern "C" void BabaiSwitchStack(void** from, void* to);
asm(R"(
.globl BabaiSwitchStack
BabaiSwitchStack:
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
)");

babai::emulated::Index gridDim, blockDim;

namespace babai::emulated {

Thread* current = nullptr;

namespace {

constexpr int kLanes = 32, kSavedRegisters = 6;
constexpr size_t kStackBytes = 64 << 10;
constexpr long kMostRounds = 3'000'000;
constexpr unsigned kMostThreads = kSms * 2048;  // at once, but never fewer blocks than SMs

void* scheduler_stack = nullptr;
const std::function<void()>* body = nullptr;
bool copies_late = true;

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "emulated device: %s\n", what);
  std::abort();
}

[[noreturn]] void RunThread() {
  (*body)();
  current->done = true;
  while (true) Yield();
}

// On a stack of its own, which later launches use again.
void Prepare(Thread& t, size_t number) {
  static std::vector<std::unique_ptr<uint8_t[]>> stacks;
  while (stacks.size() <= number) {
    stacks.push_back(std::make_unique_for_overwrite<uint8_t[]>(kStackBytes));
  }
  const auto end = reinterpret_cast<uintptr_t>(stacks[number].get() + kStackBytes) & ~uintptr_t{63};
  void** top = reinterpret_cast<void**>(end);
  *--top = nullptr;  // where a return address would be: the ABI's alignment
  *--top = reinterpret_cast<void*>(&RunThread);
  top -= kSavedRegisters;
  t.stack_pointer = top;
}

void Land(const Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.bytes);
  std::memset(copy.to + copy.bytes, 0, 16 - copy.bytes);
}

// Some launches have warps that hardly get a turn, or blocks.
enum class Slow { kNone, kBlocks, kWarps };

}  // namespace

void Yield() { BabaiSwitchStack(&current->stack_pointer, scheduler_stack); }

const Shown& MeetWarp(int kind, std::initializer_list<uint32_t> words) {
  Warp& warp = *current->of_warp;
  const unsigned meeting = warp.meetings;
  std::copy(words.begin(), words.end(), warp.shown[meeting % 2][current->lane]);
  if (warp.arrived == 0) warp.kind = kind;
  if (warp.kind != kind) Fail("lanes of a warp meet at different places");
  if (++warp.arrived == kLanes) {
    warp.arrived = 0, ++warp.meetings;
  } else {
    while (warp.meetings == meeting) Yield();
  }
  return warp.shown[meeting % 2];
}

void MeetBlock() {
  Block& block = *current->of_block;
  const unsigned meeting = block.meetings;
  if (++block.arrived == block.threads) {
    block.arrived = 0, ++block.meetings;
  } else {
    while (block.meetings == meeting) Yield();
  }
}

void StartCopy(uint32_t to_shared, const void* from, int bytes) {
  std::vector<uint8_t>& shared = current->of_block->shared;
  if (to_shared % 16 != 0 || to_shared + 16 > shared.size() ||
      reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    Fail("a copy is not aligned, or reaches past shared memory");
  }
  const Copy copy{shared.data() + to_shared, from, bytes};
  if (copies_late) {
    std::memset(copy.to, 0xee, 16);
    current->copies.push_back(copy);
  } else {
    Land(copy);
  }
}

void CommitCopies() {
  current->groups.push_back(std::move(current->copies));
  current->copies.clear();
}

void WaitForCopies(int groups_left) {
  auto& groups = current->groups;
  while (static_cast<int>(groups.size()) > groups_left) {
    for (const Copy& copy : groups.front()) Land(copy);
    groups.erase(groups.begin());
  }
}

void LandCopies() {
  WaitForCopies(0);
  for (const Copy& copy : current->copies) Land(copy);
  current->copies.clear();
}

void* OfBlock(const char* name, size_t bytes) {
  std::vector<uint8_t>& variable = current->of_block->variables[name];
  if (variable.empty()) variable.assign(bytes, 0xdd);
  return variable.data();
}

namespace {

// Blocks [first, first + count), side by side.
void RunBlocks(const dim3& grid, unsigned first, unsigned count, size_t shared_bytes, Slow slow,
               std::mt19937& rng) {
  const unsigned threads = blockDim.x, warps = threads / kLanes;
  std::vector<Block> blocks(count);
  std::vector<Warp> all_warps(size_t{count} * warps);
  std::vector<Thread> all(size_t{count} * threads);
  for (Block& block : blocks) {
    block.shared.assign(shared_bytes, 0xdd), block.threads = static_cast<int>(threads);
  }
  for (size_t i = 0; i < all.size(); ++i) {
    Thread& t = all[i];
    const unsigned block = first + static_cast<unsigned>(i) / threads;
    t.thread = {static_cast<unsigned>(i) % threads, 0, 0};
    t.block = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
    t.lane = static_cast<int>(i % kLanes);
    t.of_warp = &all_warps[i / kLanes], t.of_block = &blocks[i / threads];
    Prepare(t, i);
  }
  std::vector<unsigned> order(all_warps.size());
  std::vector<int> running(all_warps.size(), kLanes);
  std::iota(order.begin(), order.end(), 0);
  size_t left = all.size();
  for (long round = 0; left > 0; ++round) {
    if (round == kMostRounds) Fail("a kernel waits for what never comes");
    std::shuffle(order.begin(), order.end(), rng);
    for (const unsigned w : order) {
      const bool is_slow =
          (slow == Slow::kBlocks && w / warps % 2 == 0) || (slow == Slow::kWarps && w % 5 == 0);
      if (running[w] == 0 || (is_slow && rng() % 50 != 0)) continue;
      const Warp& warp = all_warps[w];
      unsigned meetings = warp.meetings - 1;
      // No longer than something happens.
      for (unsigned turns = 1 + rng() % 40; turns > 0 && meetings != warp.meetings; --turns) {
        meetings = warp.meetings;
        for (int lane = 0; lane < kLanes; ++lane) {
          Thread& t = all[size_t{w} * kLanes + lane];
          if (t.done) continue;
          current = &t;
          BabaiSwitchStack(&scheduler_stack, t.stack_pointer);
          if (t.done) --left, --running[w];
        }
      }
    }
  }
}

}  // namespace

void Run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  static std::mt19937 rng(1);
  copies_late = rng() % 2 == 0;
  const auto slow = static_cast<Slow>(rng() % 3);
  body = &kernel;
  const dim3 grid = config.gridDim;
  gridDim = {grid.x, grid.y, grid.z}, blockDim = {config.blockDim.x, 1, 1};
  const unsigned blocks = grid.x * grid.y * grid.z;
  const unsigned at_once = std::max(unsigned{kSms}, kMostThreads / blockDim.x);
  for (unsigned first = 0; first < blocks; first += at_once) {
    RunBlocks(grid, first, std::min(at_once, blocks - first), config.dynamicSmemBytes, slow, rng);
  }
}

}  // namespace babai::emulated

// A device without a device: runs a kernel's threads as fibers on one CPU thread, so that tests see
// what a kernel computes where there is no GPU. Not how fast, and not what a GPU's memory may
// reorder: warps take turns at random, within a warp lanes run one after another up to the next
// point where they meet.
//
// What a lane copies with cp.async arrives as late as it may, when it waits for it, or as early, at
// random for each launch: a wait left out and a ring overwritten too soon both show.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace babai::emulated {

constexpr int kSms = 5;
constexpr int64_t kSharedBytes = 227 << 10;  // most of a block
constexpr int kMajor = 8;                    // compute capability

struct Index {
  unsigned x, y, z;
};

constexpr int kMostWords = 8;  // that a lane shows the others

struct Warp {
  int arrived = 0;
  unsigned meetings = 0;
  int kind = 0;                       // of the meeting that lanes are arriving at
  uint32_t shown[2][32][kMostWords];  // of this meeting and the one before
};

struct Block {
  std::vector<uint8_t> shared;
  std::map<std::string, std::vector<uint8_t>> variables;
  int threads = 0, arrived = 0;
  unsigned meetings = 0;
};

struct Copy {
  uint8_t* to;
  const void* from;
  int bytes;  // of 16, the rest becomes zero
};

struct Thread {
  Index thread, block;
  int lane;
  Warp* of_warp;
  Block* of_block;
  std::vector<Copy> copies;  // since the last commit
  std::vector<std::vector<Copy>> groups;
  bool done = false;
  void* stack_pointer = nullptr;
};

extern Thread* current;

// Lets others run.
void Yield();

// All lanes of the warp meet, each at a call of the same kind, and may then read what the others
// showed.
using Shown = uint32_t[32][kMostWords];
const Shown& MeetWarp(int kind, std::initializer_list<uint32_t> words);
void MeetBlock();

void StartCopy(uint32_t to_shared, const void* from, int bytes);
void CommitCopies();
void WaitForCopies(int groups_left);
void LandCopies();  // all of this thread

// A variable that the running block's threads share.
void* OfBlock(const char* name, size_t bytes);

// Runs a kernel; returns when all is done. A thread that waits for what never comes ends the
// program.
void Run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);

// Does what a stream is given at once; while one is captured, writes it down instead. InvalidValue:
// too much shared memory.
cudaError_t Enqueue(std::function<void()> work, int64_t shared_bytes);

}  // namespace babai::emulated

extern babai::emulated::Index gridDim, blockDim;  // CUDA's names: of the running launch

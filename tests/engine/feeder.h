// Random token ids, fed to a runner in steps, and how far logits are from one another.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "server/engine/runner.h"

namespace babai {

inline std::vector<int32_t> RandomIds(int64_t count, int64_t vocab, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = random() % vocab;
  return ids;
}

// Feeds sequences in steps of given sizes; collects the logits of every token.
class Feeder {
 public:
  // Sequence s uses the blocks s, s + stride, ...: never neighbours.
  Feeder(Runner& runner, std::vector<std::vector<int32_t>> ids)
      : runner_(runner), ids_(std::move(ids)), fed_(ids_.size(), 0), logits_(ids_.size()) {}

  void Step(const std::vector<int64_t>& counts) {
    std::vector<int32_t> tokens, positions, begin = {0}, context, tables, rows;
    const int64_t stride = ids_.size();
    const int32_t max_blocks = runner_.options().kv_blocks / stride;
    for (size_t s = 0; s < ids_.size(); ++s) {
      for (int64_t i = 0; i < counts[s]; ++i) {
        tokens.push_back(ids_[s][fed_[s]]);
        positions.push_back(fed_[s]++);
        rows.push_back(rows.size());
      }
      begin.push_back(tokens.size());
      context.push_back(fed_[s]);
      for (int32_t b = 0; b < max_blocks; ++b) tables.push_back(s + b * stride);
    }
    const int64_t vocab = runner_.config().vocab;
    std::vector<float> logits(tokens.size() * vocab, std::nanf(""));
    const StepBatch batch = {tokens, positions, begin, context, tables, max_blocks, rows};
    ASSERT_TRUE(runner_.Step(batch, logits.data()).ok());
    for (size_t s = 0; s < ids_.size(); ++s) {
      logits_[s].insert(logits_[s].end(), logits.begin() + begin[s] * vocab,
                        logits.begin() + begin[s + 1] * vocab);
    }
  }
  const std::vector<float>& logits(int s) const { return logits_[s]; }

 private:
  Runner& runner_;
  std::vector<std::vector<int32_t>> ids_;
  std::vector<int64_t> fed_;
  std::vector<std::vector<float>> logits_;
};

inline double Rms(const std::vector<float>& x) {
  double sum = 0;
  for (float v : x) sum += double{v} * v;
  return std::sqrt(sum / static_cast<double>(x.size()));
}

inline double WorstDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(double{a[i]} - b[i]));
  return worst;
}

}  // namespace babai

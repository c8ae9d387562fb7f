// A model and a tokenizer small enough to reason about, for tests of the scheduler.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "server/engine/engine.h"
#include "server/engine/runner.h"
#include "server/text/tokenizer.h"

namespace babai {

inline constexpr int64_t kFakeVocab = 32;
inline constexpr int32_t kFakeEos = 31;

inline ModelConfig FakeConfig() {
  ModelConfig config;
  config.vocab = kFakeVocab;
  config.layers = 1;
  config.max_positions = 1 << 20;
  config.eos = {kFakeEos};
  return config;
}

// The token that follows a context: any function of all of it.
inline int32_t FakeNextToken(absl::Span<const int32_t> context) {
  uint64_t hash = 1469598103934665603u;
  for (int32_t token : context) hash = (hash ^ static_cast<uint64_t>(token + 1)) * 1099511628211u;
  return static_cast<int32_t>((hash >> 33) % kFakeVocab);
}

// Its KV cache holds the tokens themselves, in the blocks the batch names, and its logits depend on
// all that it finds there: a wrong block, position or length changes the text.
class FakeRunner final : public Runner {
 public:
  explicit FakeRunner(RunnerOptions options)
      : config_(FakeConfig()), options_(options), kv_(options.kv_blocks * options.block_size, -1) {}

  const ModelConfig& config() const override { return config_; }
  const RunnerOptions& options() const override { return options_; }
  int64_t weight_bytes() const override { return 0; }
  int64_t kv_bytes() const override { return 0; }
  void CopyKvBlock(int32_t, int32_t) override {}
  bool ChoosesTokens() const override { return chooses; }

  absl::Status Step(const StepBatch& batch, float* logits) override {
    steps.push_back({});
    if (fail && fail(batch)) return failure;
    size_t row = 0;
    for (size_t s = 0; s + 1 < batch.sequence_begin.size(); ++s) {
      const int32_t begin = batch.sequence_begin[s], end = batch.sequence_begin[s + 1];
      steps.back().push_back(end - begin);
      const int32_t* table = batch.block_tables.data() + s * batch.max_blocks;
      const auto slot = [&](int32_t position) -> int32_t& {
        return kv_.at(table[position / options_.block_size] * options_.block_size +
                      position % options_.block_size);
      };
      for (int32_t t = begin; t < end; ++t) slot(batch.positions[t]) = batch.tokens[t];
      if (row >= batch.logits_rows.size() || batch.logits_rows[row] != end - 1) continue;
      std::vector<int32_t> context;
      for (int32_t p = 0; p < batch.context_length[s]; ++p) context.push_back(slot(p));
      float* out = logits + row * kFakeVocab;
      const bool chosen = !batch.choices.empty() && batch.choices[row].by_runner;
      std::fill(out, out + kFakeVocab, chosen ? std::nanf("") : 0.0f);
      out[FakeNextToken(context)] = 10.0f;
      if (chosen) batch.choices[row].token = FakeNextToken(context), ++tokens_chosen;
      ++row;
    }
    return absl::OkStatus();
  }

  std::vector<std::vector<int32_t>> steps;           // tokens of each sequence of each step
  std::function<bool(const StepBatch& batch)> fail;  // null: never
  absl::Status failure = absl::InternalError("broken step");
  bool chooses = false;
  int tokens_chosen = 0;

 private:
  ModelConfig config_;
  RunnerOptions options_;
  std::vector<int32_t> kv_;
};

// Token i is the letter 'a' + i ('{' and so on above 25).
class FakeTokenizer final : public Tokenizer {
 public:
  class Stream final : public Detokenizer {
   public:
    absl::StatusOr<std::string> Push(int32_t id) override {
      return std::string(1, static_cast<char>('a' + id));
    }
    std::string Flush() override { return ""; }
  };
  int64_t vocab_size() const override { return vocab; }
  int64_t vocab = kFakeVocab;
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view, bool, bool) const override {
    return std::vector<int32_t>();
  }
  absl::StatusOr<std::string> Decode(const std::vector<int32_t>&, bool) const override {
    return std::string();
  }
  std::unique_ptr<Detokenizer> NewDetokenizer(bool) const override {
    return std::make_unique<Stream>();
  }
  bool has_chat_template() const override { return false; }
  absl::StatusOr<std::vector<int32_t>> EncodeChat(const std::vector<ChatMessage>&,
                                                  bool) const override {
    return std::vector<int32_t>();
  }
  absl::StatusOr<std::string> RenderChat(const std::vector<ChatMessage>&, bool) const override {
    return std::string();
  }
  bool IsSpecial(int32_t id) const override { return id == kFakeEos; }
  absl::Status Save(const std::filesystem::path&) const override { return absl::OkStatus(); }
};

// Keeps all it gets; `behind` is what it says about undelivered deltas.
class RecordingSink final : public GenerateSink {
 public:
  int64_t OnDelta(Delta delta) override {
    std::lock_guard<std::mutex> lock(mutex);
    text += delta.text;
    token_ids.insert(token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
    return behind;
  }
  void OnFinish(Finish f) override {
    std::lock_guard<std::mutex> lock(mutex);
    ++finishes;
    finish = std::move(f);
  }

  std::mutex mutex;
  std::string text;
  std::vector<int32_t> token_ids;
  int64_t behind = 0;
  int finishes = 0;
  Finish finish;
};

}  // namespace babai

// Engine, jobs, catalog and tokenizer without a model: what a service does with their answers is
// what the tests are about.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/engine/engine.h"
#include "server/jobs/job.h"
#include "server/reason/reason.h"
#include "server/store/catalog.h"
#include "server/text/tokenizer.h"

namespace babai::testing {

inline absl::Status NoModel(std::string_view name) {
  return Refuse(absl::StatusCode::kNotFound, reason::kModelNotFound, "model",
                absl::StrCat("no model '", std::string(name), "'"));
}

// A byte is a token.
class FakeTokenizer final : public Tokenizer {
 public:
  int64_t vocab_size() const override { return 256; }
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool, bool) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids, bool) const override {
    return std::string(ids.begin(), ids.end());
  }
  std::unique_ptr<Detokenizer> NewDetokenizer(bool) const override { return nullptr; }
  bool has_chat_template() const override { return true; }
  absl::StatusOr<std::vector<int32_t>> EncodeChat(const std::vector<ChatMessage>& messages,
                                                  bool add_prompt) const override {
    return Encode(*RenderChat(messages, add_prompt), false, false);
  }
  absl::StatusOr<std::string> RenderChat(const std::vector<ChatMessage>& messages,
                                         bool add_prompt) const override {
    std::string text;
    for (const ChatMessage& m : messages) absl::StrAppend(&text, m.role, ":", m.content, "\n");
    return add_prompt ? text + "assistant:" : text;
  }
  bool IsSpecial(int32_t) const override { return false; }
  absl::Status Save(const std::filesystem::path&) const override { return absl::OkStatus(); }
};

class FakeCatalog final : public Catalog {
 public:
  void Add(const std::string& name) {
    Manifest manifest;
    manifest.name = name;
    manifest.bits_per_weight = 4.5;
    manifest.created = "2024-01-02T03:04:05Z";
    LinearReport linear;
    linear.name = "blocks.0.q.weight";
    manifest.linears.push_back(linear);
    manifests_[name] = manifest;
  }
  std::filesystem::path ModelDir(std::string_view) const override { return {}; }
  std::filesystem::path NewStagingDir(std::string_view) const override { return {}; }
  bool Exists(std::string_view name) const override {
    return manifests_.count(std::string(name)) > 0;
  }
  absl::StatusOr<Manifest> ReadManifest(std::string_view name) const override {
    const auto it = manifests_.find(std::string(name));
    if (it == manifests_.end()) return NoModel(name);
    return it->second;
  }
  int64_t StoredBytes(std::string_view name) const override { return Exists(name) ? 1 : 0; }
  std::vector<std::string> Names() const override {
    std::vector<std::string> names;
    for (const auto& [name, manifest] : manifests_) names.push_back(name);
    return names;
  }
  absl::Status Delete(std::string_view name) override {
    manifests_.erase(std::string(name));
    return absl::OkStatus();
  }

 private:
  std::map<std::string, Manifest> manifests_;
};

// Generates `tokens` deltas of `bytes` bytes each, parks and stops as the contract says.
class FakeEngine final : public Engine {
 public:
  int tokens = 3;
  int bytes = 2;
  bool endless = false;
  bool end_when_parked = false;  // as a slow reader's sequence ends
  bool throws = false;
  absl::Status refusal;

  explicit FakeEngine(FakeCatalog* catalog) : catalog_(catalog) {}
  ~FakeEngine() override {
    for (std::thread& thread : threads_) thread.join();
  }

  absl::Status Load(std::string_view name) override {
    std::lock_guard lock(mutex_);
    loaded_[std::string(name)] = true;
    return absl::OkStatus();
  }
  absl::Status Unload(std::string_view name) override {
    std::lock_guard lock(mutex_);
    loaded_.erase(std::string(name));
    return absl::OkStatus();
  }
  absl::Status SetPinned(std::string_view name, bool pinned) override {
    std::lock_guard lock(mutex_);
    pinned_[std::string(name)] = pinned;
    return absl::OkStatus();
  }
  ModelStatus Status(std::string_view name) const override {
    std::lock_guard lock(mutex_);
    ModelStatus status;
    status.name = std::string(name);
    if (loaded_.count(status.name)) status.state = LoadState::kLoaded;
    const auto pin = pinned_.find(status.name);
    status.pinned = pin != pinned_.end() && pin->second;
    return status;
  }
  std::vector<ModelStatus> Loaded() const override {
    std::vector<std::string> names;
    {
      std::lock_guard lock(mutex_);
      for (const auto& [name, yes] : loaded_) names.push_back(name);
    }
    std::vector<ModelStatus> all;
    for (const std::string& name : names) all.push_back(Status(name));
    return all;
  }
  absl::StatusOr<std::shared_ptr<const Tokenizer>> TokenizerOf(std::string_view name) override {
    if (!catalog_->Exists(name)) return NoModel(name);
    return std::make_shared<FakeTokenizer>();
  }
  absl::StatusOr<ModelConfig> ConfigOf(std::string_view name) override {
    if (!catalog_->Exists(name)) return NoModel(name);
    ModelConfig config;
    config.vocab = 256;
    config.max_positions = 128;
    return config;
  }
  absl::StatusOr<std::shared_ptr<GenerateHandle>> Generate(
      GenerateRequest request, std::shared_ptr<GenerateSink> sink) override {
    if (throws) throw std::runtime_error("a bug");
    if (!refusal.ok()) return refusal;
    auto handle = std::make_shared<Handle>();
    std::lock_guard lock(mutex_);
    last_request_ = request;
    threads_.emplace_back([this, handle, sink, request] { Run(*handle, *sink, request); });
    return handle;
  }
  absl::StatusOr<EvaluateResult> Evaluate(const EvaluateRequest& request,
                                          const std::function<void(double)>& progress,
                                          const std::function<bool()>& stop) override {
    progress(0.5);
    while (endless && !stop()) std::this_thread::yield();
    if (stop()) return absl::CancelledError("stopped");
    EvaluateResult result;
    result.perplexity = 2;
    result.tokens = static_cast<int64_t>(request.tokens.size());
    result.has_reference = !request.reference.empty();
    return result;
  }
  std::vector<EngineStats> Stats() const override { return {}; }
  void Drain(absl::Time) override {}

  int live() const {
    std::lock_guard lock(mutex_);
    return live_;
  }
  int64_t most_undelivered() const {
    std::lock_guard lock(mutex_);
    return most_undelivered_;
  }
  GenerateRequest last_request() const {
    std::lock_guard lock(mutex_);
    return last_request_;
  }

 private:
  class Handle final : public GenerateHandle {
   public:
    void Cancel() override {
      std::lock_guard lock(mutex_);
      cancelled_ = true;
      changed_.notify_all();
    }
    void Resume() override {
      std::lock_guard lock(mutex_);
      resumed_ = true;
      changed_.notify_all();
    }
    bool cancelled() {
      std::lock_guard lock(mutex_);
      return cancelled_;
    }
    void Park() {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return resumed_ || cancelled_; });
      resumed_ = false;
    }

   private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool cancelled_ = false, resumed_ = false;
  };

  void Run(Handle& handle, GenerateSink& sink, const GenerateRequest& request) {
    Count(1, 0);
    Finish finish;
    finish.reason = FinishReason::kLength;
    finish.prompt_tokens = static_cast<int64_t>(request.prompt.size());
    finish.seed = request.sampling.seed;
    for (int i = 0; endless || i < tokens; ++i) {
      if (handle.cancelled()) {
        finish.reason = FinishReason::kCancelled;
        break;
      }
      const std::string text(static_cast<size_t>(bytes), static_cast<char>('a' + i % 26));
      const int64_t undelivered = sink.OnDelta({text, {i % 256}, {}});
      ++finish.completion_tokens;
      Count(0, undelivered);
      if (undelivered < 64) continue;
      if (end_when_parked) {
        finish.status = Refuse(absl::StatusCode::kResourceExhausted, reason::kSlowReader, "",
                               "the caller reads too slowly");
        break;
      }
      handle.Park();
    }
    Count(-1, 0);
    sink.OnFinish(finish);
  }
  void Count(int live, int64_t undelivered) {
    std::lock_guard lock(mutex_);
    live_ += live;
    most_undelivered_ = std::max(most_undelivered_, undelivered);
  }

  FakeCatalog* catalog_;
  mutable std::mutex mutex_;
  std::map<std::string, bool> loaded_, pinned_;
  std::vector<std::thread> threads_;
  GenerateRequest last_request_;
  int live_ = 0;
  int64_t most_undelivered_ = 0;
};

// Jobs that move when the test says so.
class FakeJobs final : public JobManager {
 public:
  absl::StatusOr<Job> Submit(const QuantizeSpec& spec) override {
    std::lock_guard lock(mutex_);
    for (const Job& job : jobs_) {
      if (!spec.request_id.empty() && job.spec.request_id == spec.request_id) return job;
    }
    Job job;
    job.id = absl::StrCat("job-", absl::Hex(jobs_.size() + 1, absl::kZeroPad16));
    job.spec = spec;
    job.revision = 1;
    job.created = absl::Now();
    jobs_.push_back(job);
    return job;
  }
  absl::StatusOr<Job> Get(std::string_view id) const override {
    std::lock_guard lock(mutex_);
    for (const Job& job : jobs_) {
      if (job.id == id) return job;
    }
    return Refuse(absl::StatusCode::kNotFound, reason::kJobNotFound, "name", "no such job");
  }
  absl::StatusOr<std::vector<Job>> List(int64_t page_size, std::string_view page_token,
                                        std::string* next) const override {
    std::lock_guard lock(mutex_);
    std::vector<Job> page;
    size_t i = page_token.empty() ? 0 : std::stoul(std::string(page_token));
    for (; i < jobs_.size() && static_cast<int64_t>(page.size()) < page_size; ++i) {
      page.push_back(jobs_[jobs_.size() - 1 - i]);
    }
    *next = i < jobs_.size() ? absl::StrCat(i) : "";
    return page;
  }
  absl::Status Cancel(std::string_view id) override {
    return Change(id, [](Job& job) { job.progress.state = JobState::kCancelled; });
  }
  absl::Status Delete(std::string_view id) override {
    std::lock_guard lock(mutex_);
    std::erase_if(jobs_, [&](const Job& job) { return job.id == id; });
    return absl::OkStatus();
  }
  absl::StatusOr<Job> WaitForChange(std::string_view id, int64_t, absl::Time,
                                    const std::function<bool()>&) const override {
    return Get(id);
  }
  void Shutdown() override {}

  absl::Status Change(std::string_view id, const std::function<void(Job&)>& change) {
    std::lock_guard lock(mutex_);
    for (Job& job : jobs_) {
      if (job.id != id) continue;
      change(job);
      ++job.revision;
      return absl::OkStatus();
    }
    return absl::NotFoundError("no such job");
  }

 private:
  mutable std::mutex mutex_;
  std::vector<Job> jobs_;
};

}  // namespace babai::testing

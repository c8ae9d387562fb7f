// A data directory, a model root with tiny models, and a job context that remembers.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "server/jobs/quantize_job.h"
#include "server/store/catalog.h"
#include "tests/model/checkpoint_builder.h"
#include "tests/store/temp_dir.h"

namespace babai {

class RecordingContext : public JobContext {
 public:
  // The job finds itself cancelled at its `polls`-th question.
  void CancelAfter(int64_t polls) { polls_left_ = polls; }

  void Report(const JobProgress& progress) override { reports.push_back(progress); }
  void ReportLinear(const LinearReport& linear, absl::Duration) override {
    linears.push_back(linear);
  }
  bool cancelled() const override { return --polls_left_ < 0; }

  std::vector<JobProgress> reports;
  std::vector<LinearReport> linears;

 private:
  mutable std::atomic<int64_t> polls_left_ = int64_t{1} << 60;
};

class QuantizeFixture : public testing::Test {
 protected:
  QuantizeFixture() {
    catalog_ = *Catalog::Open(temp_.path() / "data");
    env_.catalog = catalog_.get();
    env_.model_roots = {root()};
    env_.threads = 2;
    std::filesystem::create_directories(root());
  }

  std::filesystem::path root() const { return temp_.path() / "models"; }

  // Writes the model and asks for it: Babai, 4 bits, calibrated on generated text.
  QuantizeSpec SpecFor(const TinyModel& model) {
    const std::filesystem::path dir = root() / model.family;
    if (!std::filesystem::exists(dir)) WriteTinyHfModel(model, dir);
    QuantizeSpec spec;
    spec.source_uri = dir.string();
    spec.name = model.family;
    spec.recipe = *PresetRecipe("babai");
    spec.calibration.source = CalibrationSpec::Source::kTokenIds;
    spec.calibration.samples = 12;
    spec.calibration.length = 24;
    spec.calibration.held_out = 3;
    spec.calibration.token_ids = {RandomIds(15 * 24 + 7, model.vocab)};
    return spec;
  }

  static std::vector<int32_t> RandomIds(int64_t count, int64_t vocab) {
    std::vector<int32_t> ids;
    uint64_t state = 12345;
    for (int64_t i = 0; i < count; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX
      ids.push_back(static_cast<int32_t>((state >> 33) % vocab));
    }
    return ids;
  }

  absl::StatusOr<Manifest> Run(const QuantizeSpec& spec) {
    Job job;
    job.id = "job-1";
    job.spec = spec;
    return RunQuantizeJob(job, context_, env_);
  }

  // Runs the job again and again, cancelled ever later (at a poll `growth` times as late as the
  // last) until it gets through. How often it was cancelled; expects that nothing was left each
  // time.
  int CancelEverywhere(const QuantizeSpec& spec, double growth) {
    int cancelled = 0;
    for (int64_t polls = 0;; polls = static_cast<int64_t>(polls * growth) + 1) {
      context_.CancelAfter(polls);
      const auto manifest = Run(spec);
      if (manifest.ok()) return cancelled;
      EXPECT_TRUE(absl::IsCancelled(manifest.status())) << polls << ": " << manifest.status();
      EXPECT_TRUE(NothingIsLeft()) << polls;
      ++cancelled;
    }
  }

  bool NothingIsLeft() const {
    return catalog_->Names().empty() && std::filesystem::is_empty(temp_.path() / "data" / "tmp") &&
           std::filesystem::is_empty(temp_.path() / "data" / "models");
  }

  TempDir temp_;
  std::unique_ptr<Catalog> catalog_;
  QuantizeEnvironment env_;
  RecordingContext context_;
};

}  // namespace babai

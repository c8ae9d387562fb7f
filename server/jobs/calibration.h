// Calibration tokens: which ones, from where, cut how.
//
// All texts are tokenized and joined; `samples + held_out` sequences of `length` tokens are taken
// from the whole, spread evenly and without overlap, and the held-out ones are spread evenly among
// them. A model whose tokenizer puts BOS in front of a text gets it as the first token of every
// sequence.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/jobs/job.h"
#include "server/model/checkpoint.h"
#include "server/model/config.h"
#include "server/text/tokenizer.h"

namespace babai {

using Sequence = std::vector<int32_t>;

struct CalibrationSet {
  std::vector<Sequence> training;  // moments are taken from these
  std::vector<Sequence> held_out;  // the evaluation is made on these
  int64_t length = 0;              // tokens of each sequence
};

// The number of held-out sequences that `spec` means.
int64_t HeldOutSequences(const CalibrationSpec& spec);
// The tokens of each sequence that it means for this model.
int64_t SequenceLength(const CalibrationSpec& spec, const ModelConfig& config);

// What can be refused before the job runs: numbers out of range, a length beyond the model's
// context, ids outside the vocabulary, a URI that is not allowed or not there, and too little data
// where it is in the request and small. Errors name the field, "calibration.length" and the like.
absl::Status CheckCalibration(const CalibrationSpec& spec, const Checkpoint& checkpoint,
                              const std::vector<std::filesystem::path>& roots);

// sha256 of everything that decides which tokens are used, the source model aside.
absl::StatusOr<std::string> CalibrationDigest(const CalibrationSpec& spec,
                                              const ModelConfig& config,
                                              const std::vector<std::filesystem::path>& roots);

// Reads, tokenizes and cuts (kTexts, kTokenIds, kUri). InvalidArgument: not UTF-8, a line of the
// jsonl file that is no {"text": ...}; CALIBRATION_TOO_SMALL, with the numbers.
absl::StatusOr<CalibrationSet> LoadCalibration(const CalibrationSpec& spec,
                                               const Checkpoint& checkpoint,
                                               const std::vector<std::filesystem::path>& roots,
                                               const std::function<bool()>& stop);

// Splits sequences as above; used for generated ones, too.
CalibrationSet SplitHeldOut(std::vector<Sequence> sequences, int64_t held_out);

// The cut alone.
absl::StatusOr<std::vector<Sequence>> CutSequences(const Sequence& tokens, int64_t samples,
                                                   int64_t held_out, int64_t length);

}  // namespace babai

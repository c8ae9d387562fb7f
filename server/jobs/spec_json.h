// A quantize request as JSON, in two parts: what a list of jobs shows, and the calibration data,
// which may be large, is needed only to run the job and is dropped when it has ended.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "server/jobs/job.h"

namespace babai {

std::string SpecToJson(const QuantizeSpec& spec);             // without texts and token ids
std::string CalibrationDataToJson(const CalibrationSpec& c);  // texts and token ids alone
// DataLoss: not what SpecToJson() writes. `data` may be empty: then there are no texts and ids.
absl::StatusOr<QuantizeSpec> SpecFromJson(std::string_view spec, std::string_view data);

}  // namespace babai

// Structs of the lower layers -> messages on the wire.
#pragma once

#include <string_view>

#include "absl/time/time.h"
#include "babai/v1/common.pb.h"
#include "babai/v1/generation.pb.h"
#include "babai/v1/models.pb.h"
#include "babai/v1/quantization.pb.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/timestamp.pb.h"
#include "server/engine/engine.h"
#include "server/jobs/job.h"
#include "server/store/packed_model.h"

namespace babai {

// Durations and times outside what the messages can hold are cut to it.
google::protobuf::Duration ToProto(absl::Duration duration);
google::protobuf::Timestamp ToProto(absl::Time time);

v1::Recipe ToProto(const Recipe& recipe);
v1::LinearReport ToProto(const LinearReport& linear);
v1::QualityReport ToProto(const Evaluation& evaluation);
v1::Finish ToProto(const Finish& finish);

// `full` adds linears and warnings. A recipe this program can not read (a newer one) is left out.
v1::Model ToProto(const Manifest& manifest, const ModelStatus& status, const ModelConfig& config,
                  bool full);

// Why a job that ended without a model did so; never OK.
absl::Status ErrorOf(const Job& job);

// Job state without linears; AddLinears() adds those from `first` on.
v1::QuantizeMetadata ToProto(const Job& job);
void AddLinears(const Job& job, size_t first, v1::QuantizeMetadata& metadata);

}  // namespace babai

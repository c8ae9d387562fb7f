#include "server/rpc/messages.h"

#include <cmath>
#include <string>

#include "server/reason/reason.h"
#include "server/rpc/status.h"

namespace babai {
namespace {

v1::FinishReason ToProtoReason(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEos:
      return v1::FINISH_REASON_EOS;
    case FinishReason::kStopString:
      return v1::FINISH_REASON_STOP_STRING;
    case FinishReason::kStopToken:
      return v1::FINISH_REASON_STOP_TOKEN;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

v1::Model::State ToProtoState(LoadState state) {
  switch (state) {
    case LoadState::kUnloaded:
      return v1::Model::STATE_UNLOADED;
    case LoadState::kLoading:
      return v1::Model::STATE_LOADING;
    case LoadState::kLoaded:
      return v1::Model::STATE_LOADED;
    case LoadState::kFailed:
      return v1::Model::STATE_FAILED;
  }
  return v1::Model::STATE_UNSPECIFIED;
}

v1::QuantizeMetadata::State ToProtoState(JobState state) {
  switch (state) {
    case JobState::kQueued:
      return v1::QuantizeMetadata::STATE_QUEUED;
    case JobState::kFetching:
      return v1::QuantizeMetadata::STATE_FETCHING;
    case JobState::kCalibrating:
      return v1::QuantizeMetadata::STATE_CALIBRATING;
    case JobState::kQuantizing:
      return v1::QuantizeMetadata::STATE_QUANTIZING;
    case JobState::kEvaluating:
      return v1::QuantizeMetadata::STATE_EVALUATING;
    case JobState::kReady:
      return v1::QuantizeMetadata::STATE_READY;
    case JobState::kCancelled:
      return v1::QuantizeMetadata::STATE_CANCELLED;
    case JobState::kFailed:
      return v1::QuantizeMetadata::STATE_FAILED;
  }
  return v1::QuantizeMetadata::STATE_UNSPECIFIED;
}

bool IsKnown(absl::Time time) { return time > absl::UnixEpoch() && time < absl::InfiniteFuture(); }

void SetTimes(const Job& job, v1::QuantizeMetadata& metadata) {
  *metadata.mutable_create_time() = ToProto(job.created);
  if (IsKnown(job.started)) *metadata.mutable_start_time() = ToProto(job.started);
  if (IsKnown(job.finished)) *metadata.mutable_end_time() = ToProto(job.finished);
}

}  // namespace

google::protobuf::Duration ToProto(absl::Duration duration) {
  constexpr int64_t kMaxSeconds = 315'576'000'000;  // the limit of google.protobuf.Duration
  google::protobuf::Duration proto;
  absl::Duration rest;
  int64_t seconds = absl::IDivDuration(duration, absl::Seconds(1), &rest);
  if (seconds > kMaxSeconds || seconds < -kMaxSeconds) {
    seconds = seconds < 0 ? -kMaxSeconds : kMaxSeconds;
    rest = absl::ZeroDuration();
  }
  proto.set_seconds(seconds);
  proto.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  return proto;
}

google::protobuf::Timestamp ToProto(absl::Time time) {
  google::protobuf::Timestamp proto;
  const google::protobuf::Duration since = ToProto(time - absl::UnixEpoch());
  proto.set_seconds(since.seconds());
  proto.set_nanos(since.nanos());
  return proto;
}

v1::LinearReport ToProto(const LinearReport& linear) {
  v1::LinearReport proto;
  proto.set_name(linear.name);
  proto.set_rows(linear.rows);
  proto.set_cols(linear.cols);
  proto.set_bits_per_weight(linear.bits_per_weight);
  proto.set_relative_error(linear.relative_error);
  proto.set_proxy_loss(linear.proxy_loss);
  proto.set_babai_bound(linear.babai_bound);
  proto.set_clip_rate(linear.clip_rate);
  proto.set_rate_gap_bits(linear.rate_gap_bits);
  proto.set_entropy_bits(linear.entropy_bits);
  proto.set_damping(linear.damping);
  proto.set_damping_doublings(linear.damping_doublings);
  proto.set_dead_columns(linear.dead_columns);
  proto.set_alpha(linear.alpha);
  proto.set_outliers(linear.outliers);
  return proto;
}

v1::QualityReport ToProto(const Evaluation& evaluation) {
  v1::QualityReport proto;
  proto.set_tokens(evaluation.tokens);
  const auto is_given = [](double value) { return !std::isnan(value); };
  if (is_given(evaluation.perplexity)) proto.set_perplexity(evaluation.perplexity);
  if (is_given(evaluation.reference_perplexity)) {
    proto.set_reference_perplexity(evaluation.reference_perplexity);
  }
  if (is_given(evaluation.mean_kl)) proto.set_mean_kl(evaluation.mean_kl);
  if (is_given(evaluation.top1_agreement)) proto.set_top1_agreement(evaluation.top1_agreement);
  return proto;
}

v1::Finish ToProto(const Finish& finish) {
  v1::Finish proto;
  proto.set_reason(ToProtoReason(finish.reason));
  proto.set_matched_stop(finish.matched_stop);
  proto.mutable_usage()->set_prompt_tokens(finish.prompt_tokens);
  proto.mutable_usage()->set_completion_tokens(finish.completion_tokens);
  proto.set_seed(finish.seed);
  *proto.mutable_timings()->mutable_queue() = ToProto(finish.queue_time);
  *proto.mutable_timings()->mutable_prefill() = ToProto(finish.prefill_time);
  *proto.mutable_timings()->mutable_decode() = ToProto(finish.decode_time);
  return proto;
}

v1::Model ToProto(const Manifest& manifest, const ModelStatus& status, const ModelConfig& config,
                  bool full) {
  v1::Model proto;
  proto.set_name(manifest.name);
  proto.set_state(ToProtoState(status.state));
  if (!status.error.ok()) *proto.mutable_error() = ToProtoStatus(status.error);
  proto.set_pinned(status.pinned);
  proto.set_family(config.family);
  proto.set_architecture(config.architecture);
  proto.set_context_length(status.context_length > 0 ? status.context_length
                                                     : config.max_positions);
  proto.set_vocab_size(config.vocab);
  proto.set_weights(manifest.weights);
  proto.set_packed_bytes(manifest.packed_bytes);
  proto.set_bits_per_weight(manifest.bits_per_weight);
  if (auto recipe = RecipeFromJson(manifest.recipe_json); recipe.ok()) {
    *proto.mutable_recipe() = ToProto(*recipe);
  }
  proto.set_source_uri(manifest.source_uri);
  proto.set_source_digest(manifest.source_digest);
  proto.set_calibration_digest(manifest.calibration_digest);
  proto.set_content_key(manifest.content_key);
  proto.set_tool_version(manifest.tool_version);
  absl::Time created;
  std::string error;
  if (absl::ParseTime(absl::RFC3339_full, manifest.created, &created, &error)) {
    *proto.mutable_create_time() = ToProto(created);
  }
  if (manifest.has_evaluation) *proto.mutable_quality() = ToProto(manifest.evaluation);
  proto.set_weight_bytes(status.weight_bytes);
  proto.set_kv_bytes(status.kv_bytes);
  proto.set_running(status.running);
  proto.set_waiting(status.waiting);
  if (!full) return proto;
  for (const LinearReport& linear : manifest.linears) *proto.add_linears() = ToProto(linear);
  for (const std::string& warning : manifest.warnings) proto.add_warnings(warning);
  return proto;
}

absl::Status ErrorOf(const Job& job) {
  if (!job.error.ok()) return job.error;
  if (job.progress.state == JobState::kCancelled) {
    return Refuse(absl::StatusCode::kCancelled, reason::kCancelled, "", "the job was cancelled");
  }
  return Refuse(absl::StatusCode::kInternal, reason::kInternal, "", "the job failed");
}

v1::QuantizeMetadata ToProto(const Job& job) {
  const JobProgress& progress = job.progress;
  v1::QuantizeMetadata proto;
  proto.set_state(ToProtoState(progress.state));
  proto.set_model(job.spec.name);
  proto.set_source_uri(job.spec.source_uri);
  *proto.mutable_recipe() = ToProto(job.spec.recipe);
  proto.set_fraction(progress.fraction);
  proto.set_block(progress.block);
  proto.set_blocks(progress.blocks);
  proto.set_phase(progress.phase);
  *proto.mutable_elapsed() = ToProto(absl::Seconds(progress.elapsed_seconds));
  if (progress.eta_seconds) *proto.mutable_eta() = ToProto(absl::Seconds(*progress.eta_seconds));
  proto.set_calibration_tokens(progress.calibration_tokens);
  proto.set_worst_relative_error(progress.worst_relative_error);
  proto.set_worst_linear(progress.worst_linear);
  for (const std::string& warning : progress.warnings) proto.add_warnings(warning);
  proto.set_revision(job.revision);
  proto.set_restarts(job.restarts);
  SetTimes(job, proto);
  proto.set_content_key(job.content_key);
  return proto;
}

void AddLinears(const Job& job, size_t first, v1::QuantizeMetadata& metadata) {
  for (size_t i = first; i < job.linears.size(); ++i) {
    *metadata.add_linears() = ToProto(job.linears[i]);
  }
}

}  // namespace babai

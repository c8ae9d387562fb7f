// Requests off the wire -> the structs of the lower layers, every field checked on the way. A field
// that this release does not honour is refused, never ignored.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "babai/v1/generation.pb.h"
#include "babai/v1/quantization.pb.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "server/engine/engine.h"
#include "server/jobs/job.h"
#include "server/text/tokenizer.h"

namespace babai {

// UNIMPLEMENTED, NOT_IN_THIS_RELEASE, naming the field.
absl::Status NotInThisRelease(std::string_view field, std::string_view what);

// Everything about a Generate that can be checked without the model.
absl::Status CheckGenerate(const v1::GenerateRequest& request);

// The engine's request; `request` passed CheckGenerate(). An absent seed is drawn at random.
absl::StatusOr<GenerateRequest> ToGenerateRequest(const v1::GenerateRequest& request,
                                                  const Tokenizer& tokenizer, absl::Time deadline);

// Roles and contents checked; errors name `field`[i].
absl::StatusOr<std::vector<ChatMessage>> ToChatMessages(
    const google::protobuf::RepeatedPtrField<v1::ChatMessage>& messages, std::string_view field);

// InvalidArgument names field[i] of the first id outside [0, vocab).
absl::Status CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids, int64_t vocab,
                           std::string_view field);

absl::StatusOr<QuantizeSpec> ToQuantizeSpec(const v1::QuantizeRequest& request);
absl::StatusOr<Recipe> ToRecipe(const v1::Recipe& recipe);

// 0 -> the default.
absl::StatusOr<int64_t> ToPageSize(int32_t page_size);

// "operations/x" or "x" -> "x". InvalidArgument names "name".
absl::StatusOr<std::string> ToOperationId(std::string_view name);

}  // namespace babai

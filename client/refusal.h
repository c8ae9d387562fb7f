// Errors of a babai server for people and programs.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/support/status.h"

namespace babai::client {

// What a server said when it refused.
struct Refusal {
  std::string code;  // "INVALID_ARGUMENT"
  std::string
      reason;         // "INVALID_FIELD"; empty from a server that is not babai, or no server at all
  std::string field;  // "recipe.bits"; may be empty
  std::string message;
  double retry_seconds = 0;  // 0 = retrying does not help
};

// The code and message stay, the details travel as a payload.
absl::Status FromGrpc(const grpc::Status& status);
absl::Status FromProto(const google::rpc::Status& status);

// `status` must not be OK.
Refusal RefusalOf(const absl::Status& status);

// "INVALID_ARGUMENT (INVALID_FIELD, recipe.bits): must be 2, 3, 4 or 8"
std::string ToText(const absl::Status& status);

}  // namespace babai::client

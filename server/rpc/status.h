// absl::Status -> what goes over the wire: the same canonical code, and google.rpc details
// (ErrorInfo with the stable reason, BadRequest for a request field, RetryInfo on back-pressure).
#pragma once

#include "absl/status/status.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/support/status.h"

namespace babai {

google::rpc::Status ToProtoStatus(const absl::Status& status);

// The details travel in grpc-status-details-bin. The message is cut to 1 KiB, because it goes into
// a header and peers accept 8 KiB of those.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace babai

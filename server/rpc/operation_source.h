// Where operations come from: quantize jobs (durable) and evaluations (in memory). The Operations
// service is the same for both.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "google/longrunning/operations.pb.h"

namespace babai {

using google::longrunning::Operation;

// Thread-safe. Ids come without "operations/".
class OperationSource {
 public:
  virtual ~OperationSource() = default;
  virtual bool Owns(std::string_view id) const = 0;  // by the id's prefix; it need not exist
  virtual absl::StatusOr<Operation> Get(std::string_view id) const = 0;  // NotFound JOB_NOT_FOUND
  // Newest first, without per-layer reports. `page_token` is empty or the previous next_page_token.
  virtual absl::StatusOr<std::vector<Operation>> List(int64_t page_size,
                                                      std::string_view page_token,
                                                      std::string* next_page_token) const = 0;
  virtual absl::Status Cancel(std::string_view id) = 0;  // idempotent
  virtual absl::Status Delete(std::string_view id) = 0;  // FailedPrecondition unless done
};

}  // namespace babai

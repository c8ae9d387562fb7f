// Quantize jobs as operations.
#pragma once

#include "server/engine/engine.h"
#include "server/jobs/job.h"
#include "server/rpc/operation_source.h"
#include "server/store/catalog.h"

namespace babai {

// Thread-safe; owns nothing.
class QuantizeOperations final : public OperationSource {
 public:
  QuantizeOperations(JobManager* jobs, Catalog* catalog, Engine* engine)
      : jobs_(jobs), catalog_(catalog), engine_(engine) {}

  bool Owns(std::string_view id) const override { return id.starts_with("job-"); }
  absl::StatusOr<Operation> Get(std::string_view id) const override;
  absl::StatusOr<std::vector<Operation>> List(int64_t page_size, std::string_view page_token,
                                              std::string* next_page_token) const override;
  absl::Status Cancel(std::string_view id) override { return jobs_->Cancel(id); }
  absl::Status Delete(std::string_view id) override { return jobs_->Delete(id); }

  Operation ToOperation(const Job& job, bool with_linears) const;

 private:
  JobManager* jobs_;
  Catalog* catalog_;
  Engine* engine_;
};

}  // namespace babai

// The durable table of jobs. Each call is one transaction, on disk when it returns OK.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/jobs/job.h"
#include "server/jobs/sqlite.h"

namespace babai {

// A job as the table keeps it. The calibration data is read apart, by whoever runs the job.
struct JobRow {
  Job job;
  int64_t sequence = 0;  // order of submission
  bool cancel_requested = false;
  std::string spec_digest;  // of the whole request, calibration data included
};

// Not thread-safe.
class JobTable {
 public:
  // FailedPrecondition SCHEMA_TOO_NEW: a newer release wrote it.
  static absl::StatusOr<std::unique_ptr<JobTable>> Open(const std::string& path);

  absl::StatusOr<std::vector<JobRow>> ReadAll();  // in order of submission
  absl::Status Insert(JobRow& row);               // sets row.sequence
  absl::Status Update(const JobRow& row);         // a terminal job loses its calibration data
  absl::Status InsertLinears(const Job& job, size_t first);  // job.linears[first..]
  absl::Status DeleteLinears(std::string_view id);
  absl::Status Delete(std::string_view id);
  absl::StatusOr<QuantizeSpec> ReadSpec(std::string_view id);  // with calibration data

 private:
  explicit JobTable(std::unique_ptr<Database> db) : db_(std::move(db)) {}
  absl::Status CheckSchema();
  absl::Status ReadLinears(Job& job);
  std::unique_ptr<Database> db_;
};

}  // namespace babai

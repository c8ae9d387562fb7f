#include "server/rpc/quantize_operations.h"

#include "absl/strings/str_cat.h"
#include "server/rpc/messages.h"
#include "server/rpc/status.h"

namespace babai {
namespace {

// The model a finished job made. It may have been deleted or replaced since: then its name alone.
v1::Model ResultOf(const Job& job, Catalog& catalog, Engine& engine) {
  v1::Model model;
  model.set_name(job.spec.name);
  const auto manifest = catalog.ReadManifest(job.spec.name);
  if (!manifest.ok() || manifest->content_key != job.content_key) return model;
  const auto config = engine.ConfigOf(job.spec.name);
  if (!config.ok()) return model;
  return ToProto(*manifest, engine.Status(job.spec.name), *config, /*full=*/false);
}

}  // namespace

Operation QuantizeOperations::ToOperation(const Job& job, bool with_linears) const {
  Operation operation;
  operation.set_name(absl::StrCat("operations/", job.id));
  v1::QuantizeMetadata metadata = ToProto(job);
  if (with_linears) AddLinears(job, 0, metadata);
  operation.mutable_metadata()->PackFrom(metadata);
  operation.set_done(IsTerminal(job.progress.state));
  if (job.progress.state == JobState::kReady) {
    operation.mutable_response()->PackFrom(ResultOf(job, *catalog_, *engine_));
  } else if (operation.done()) {
    *operation.mutable_error() = ToProtoStatus(ErrorOf(job));
  }
  return operation;
}

absl::StatusOr<Operation> QuantizeOperations::Get(std::string_view id) const {
  const auto job = jobs_->Get(id);
  if (!job.ok()) return job.status();
  return ToOperation(*job, /*with_linears=*/true);
}

absl::StatusOr<std::vector<Operation>> QuantizeOperations::List(
    int64_t page_size, std::string_view page_token, std::string* next_page_token) const {
  const auto jobs = jobs_->List(page_size, page_token, next_page_token);
  if (!jobs.ok()) return jobs.status();
  std::vector<Operation> operations;
  for (const Job& job : *jobs) operations.push_back(ToOperation(job, /*with_linears=*/false));
  return operations;
}

}  // namespace babai

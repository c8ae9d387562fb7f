#include "server/jobs/job_table.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "server/jobs/spec_json.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kSchema = 1;

constexpr char kCreate[] = R"(
BEGIN;
CREATE TABLE jobs (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  request_id TEXT UNIQUE,              -- NULL: the caller gave none
  spec TEXT NOT NULL,                  -- JSON, spec_json.h
  spec_digest TEXT NOT NULL,
  calibration TEXT NOT NULL,           -- JSON; empty once the job has ended
  state TEXT NOT NULL,
  progress TEXT NOT NULL,              -- JSON
  revision INTEGER NOT NULL,
  cancel_requested INTEGER NOT NULL,
  error TEXT NOT NULL,                 -- JSON; empty: none
  created INTEGER NOT NULL,            -- microseconds since 1970, 0: not yet
  started INTEGER NOT NULL,
  finished INTEGER NOT NULL,
  restarts INTEGER NOT NULL,
  content_key TEXT NOT NULL
);
CREATE TABLE linears (
  job_id TEXT NOT NULL,
  position INTEGER NOT NULL,
  report TEXT NOT NULL,                -- JSON
  PRIMARY KEY (job_id, position)
) WITHOUT ROWID;
PRAGMA user_version = 1;
COMMIT;
)";

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string ProgressToJson(const JobProgress& p) {
  Json json = {{"fraction", p.fraction},
               {"block", p.block},
               {"blocks", p.blocks},
               {"phase", p.phase},
               {"elapsed_seconds", p.elapsed_seconds},
               {"calibration_tokens", p.calibration_tokens},
               {"worst_relative_error", p.worst_relative_error},
               {"worst_linear", p.worst_linear},
               {"warnings", p.warnings}};
  return Dump(json);
}

// Only this program writes the table; a field of another type means a damaged file, which the
// JSON library reports by an exception that ReadRow() catches.
void ProgressFromJson(const std::string& text, JobProgress& p) {
  const Json json = Json::parse(text);
  p.fraction = json.at("fraction").get<double>();
  p.block = json.at("block").get<int64_t>();
  p.blocks = json.at("blocks").get<int64_t>();
  p.phase = json.at("phase").get<std::string>();
  p.elapsed_seconds = json.at("elapsed_seconds").get<double>();
  p.calibration_tokens = json.at("calibration_tokens").get<int64_t>();
  p.worst_relative_error = json.at("worst_relative_error").get<double>();
  p.worst_linear = json.at("worst_linear").get<std::string>();
  p.warnings = json.at("warnings").get<std::vector<std::string>>();
}

std::string ErrorToJson(const absl::Status& error) {
  if (error.ok()) return "";
  return Dump({{"code", static_cast<int>(error.code())},
               {"message", std::string(error.message())},
               {"reason", ReasonOf(error)},
               {"field", FieldOf(error)}});
}

absl::Status ErrorFromJson(const std::string& text) {
  if (text.empty()) return absl::OkStatus();
  const Json json = Json::parse(text);
  const auto field = json.at("field").get<std::string>();
  auto message = json.at("message").get<std::string>();
  // Refuse() puts the field in front of the message again.
  if (!field.empty() && message.rfind(field + ": ", 0) == 0) message.erase(0, field.size() + 2);
  return Refuse(static_cast<absl::StatusCode>(json.at("code").get<int>()),
                json.at("reason").get<std::string>(), field, message);
}

int64_t ToMicros(absl::Time time) {
  return time == absl::InfinitePast() ? 0 : absl::ToUnixMicros(time);
}
absl::Time FromMicros(int64_t micros) {
  return micros == 0 ? absl::InfinitePast() : absl::FromUnixMicros(micros);
}

JobState StateFromName(const std::string& name) {
  for (int s = 0; s <= static_cast<int>(JobState::kFailed); ++s) {
    if (JobStateName(static_cast<JobState>(s)) == name) return static_cast<JobState>(s);
  }
  return JobState::kFailed;
}

absl::StatusOr<JobRow> ReadRow(const Statement& s) {
  JobRow row;
  Job& job = row.job;
  row.sequence = s.Int(0);
  job.id = s.Text(1);
  auto spec = SpecFromJson(s.Text(2), "");
  if (!spec.ok()) return spec.status();
  job.spec = *std::move(spec);
  row.spec_digest = s.Text(3);
  try {
    ProgressFromJson(s.Text(5), job.progress);
    job.error = ErrorFromJson(s.Text(8));
  } catch (const nlohmann::json::exception&) {
    return Refuse(absl::StatusCode::kDataLoss, reason::kIoError, "jobs table", "a row is damaged");
  }
  job.progress.state = StateFromName(s.Text(4));
  job.revision = s.Int(6);
  row.cancel_requested = s.Int(7) != 0;
  job.created = FromMicros(s.Int(9));
  job.started = FromMicros(s.Int(10));
  job.finished = FromMicros(s.Int(11));
  job.restarts = static_cast<int>(s.Int(12));
  job.content_key = s.Text(13);
  return row;
}

// The columns that change, in one order for INSERT and UPDATE.
void BindState(const JobRow& row, Statement& s) {
  const Job& job = row.job;
  s.Bind(JobStateName(job.progress.state)).Bind(ProgressToJson(job.progress)).Bind(job.revision);
  s.Bind(int64_t{row.cancel_requested}).Bind(ErrorToJson(job.error));
  s.Bind(ToMicros(job.created)).Bind(ToMicros(job.started)).Bind(ToMicros(job.finished));
  s.Bind(int64_t{job.restarts}).Bind(job.content_key);
}

}  // namespace

absl::StatusOr<std::unique_ptr<JobTable>> JobTable::Open(const std::string& path) {
  auto db = Database::Open(path);
  if (!db.ok()) return db.status();
  std::unique_ptr<JobTable> table(new JobTable(*std::move(db)));
  if (auto status = table->CheckSchema(); !status.ok()) return status;
  return table;
}

absl::Status JobTable::CheckSchema() {
  auto query = db_->Prepare("PRAGMA user_version");
  if (!query.ok()) return query.status();
  const auto row = query->Step();
  if (!row.ok()) return row.status();
  const int64_t schema = query->Int(0);
  if (schema == kSchema) return absl::OkStatus();
  if (schema == 0) return db_->Execute(kCreate);
  return Refuse(absl::StatusCode::kFailedPrecondition, reason::kSchemaTooNew, "jobs table",
                "was written by a newer release");
}

absl::StatusOr<std::vector<JobRow>> JobTable::ReadAll() {
  auto query = db_->Prepare(
      "SELECT sequence, id, spec, spec_digest, state, progress, revision, cancel_requested, error, "
      "created, started, finished, restarts, content_key FROM jobs ORDER BY sequence");
  if (!query.ok()) return query.status();
  std::vector<JobRow> rows;
  for (;;) {
    const auto more = query->Step();
    if (!more.ok()) return more.status();
    if (!*more) break;
    auto row = ReadRow(*query);
    if (!row.ok()) return row.status();
    if (auto status = ReadLinears(row->job); !status.ok()) return status;
    rows.push_back(*std::move(row));
  }
  return rows;
}

absl::Status JobTable::ReadLinears(Job& job) {
  auto query = db_->Prepare("SELECT report FROM linears WHERE job_id = ? ORDER BY position");
  if (!query.ok()) return query.status();
  query->Bind(job.id);
  for (;;) {
    const auto more = query->Step();
    if (!more.ok()) return more.status();
    if (!*more) return absl::OkStatus();
    auto linear = LinearReportFromJson(query->Text(0));
    if (!linear.ok()) return linear.status();
    job.linears.push_back(*std::move(linear));
  }
}

absl::Status JobTable::Insert(JobRow& row) {
  auto insert = db_->Prepare(
      "INSERT INTO jobs (id, request_id, spec, spec_digest, calibration, state, progress, "
      "revision, "
      "cancel_requested, error, created, started, finished, restarts, content_key) "
      "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING sequence");
  if (!insert.ok()) return insert.status();
  const QuantizeSpec& spec = row.job.spec;
  insert->Bind(row.job.id);
  spec.request_id.empty() ? insert->BindNull() : insert->Bind(spec.request_id);
  insert->Bind(SpecToJson(spec))
      .Bind(row.spec_digest)
      .Bind(CalibrationDataToJson(spec.calibration));
  BindState(row, *insert);
  if (auto inserted = insert->Step(); !inserted.ok()) return inserted.status();
  row.sequence = insert->Int(0);
  return insert->Run();  // to the end, where the transaction commits
}

absl::Status JobTable::Update(const JobRow& row) {
  auto update = db_->Prepare(
      "UPDATE jobs SET state = ?, progress = ?, revision = ?, cancel_requested = ?, error = ?, "
      "created = ?, started = ?, finished = ?, restarts = ?, content_key = ?, "
      "calibration = CASE WHEN ? THEN '' ELSE calibration END WHERE id = ?");
  if (!update.ok()) return update.status();
  BindState(row, *update);
  return update->Bind(int64_t{IsTerminal(row.job.progress.state)}).Bind(row.job.id).Run();
}

absl::Status JobTable::InsertLinears(const Job& job, size_t first) {
  if (auto status = db_->Execute("BEGIN"); !status.ok()) return status;
  absl::Status status;
  for (size_t i = first; i < job.linears.size() && status.ok(); ++i) {
    auto insert =
        db_->Prepare("INSERT OR REPLACE INTO linears (job_id, position, report) VALUES (?, ?, ?)");
    if (!insert.ok()) {
      status = insert.status();
    } else {
      status = insert->Bind(job.id).Bind(int64_t(i)).Bind(LinearReportToJson(job.linears[i])).Run();
    }
  }
  if (status.ok()) status = db_->Execute("COMMIT");
  if (!status.ok()) (void)db_->Execute("ROLLBACK");
  return status;
}

absl::Status JobTable::DeleteLinears(std::string_view id) {
  auto remove = db_->Prepare("DELETE FROM linears WHERE job_id = ?");
  if (!remove.ok()) return remove.status();
  return remove->Bind(id).Run();
}

absl::Status JobTable::Delete(std::string_view id) {
  if (auto status = DeleteLinears(id); !status.ok()) return status;
  auto remove = db_->Prepare("DELETE FROM jobs WHERE id = ?");
  if (!remove.ok()) return remove.status();
  return remove->Bind(id).Run();
}

absl::StatusOr<QuantizeSpec> JobTable::ReadSpec(std::string_view id) {
  auto query = db_->Prepare("SELECT spec, calibration FROM jobs WHERE id = ?");
  if (!query.ok()) return query.status();
  query->Bind(id);
  const auto row = query->Step();
  if (!row.ok()) return row.status();
  if (!*row) return absl::NotFoundError("the job was deleted");
  return SpecFromJson(query->Text(0), query->Text(1));
}

}  // namespace babai

#include "server/jobs/sqlite.h"

#include <sqlite3.h>

#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int kBusyMs = 5000;  // a backup tool may hold the file for a moment

absl::Status SqliteError(sqlite3* handle) {
  const int code = handle == nullptr ? SQLITE_NOMEM : sqlite3_errcode(handle);
  const std::string text = handle == nullptr ? "no memory" : sqlite3_errmsg(handle);
  switch (code) {
    case SQLITE_FULL:
      return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfDisk, "jobs table", text);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return Refuse(absl::StatusCode::kDataLoss, reason::kIoError, "jobs table", text);
    default:
      return Refuse(absl::StatusCode::kInternal, reason::kIoError, "jobs table", text);
  }
}

}  // namespace

void Statement::Finalize(sqlite3_stmt* statement) { sqlite3_finalize(statement); }

Statement& Statement::Bind(std::string_view text) {
  // A failure to bind (no memory) leaves NULL, which the NOT NULL of every column refuses.
  sqlite3_bind_text64(statement_.get(), ++bound_, text.data(), text.size(), SQLITE_TRANSIENT,
                      SQLITE_UTF8);
  return *this;
}

Statement& Statement::Bind(int64_t value) {
  sqlite3_bind_int64(statement_.get(), ++bound_, value);
  return *this;
}

Statement& Statement::BindNull() {
  sqlite3_bind_null(statement_.get(), ++bound_);
  return *this;
}

absl::StatusOr<bool> Statement::Step() {
  switch (sqlite3_step(statement_.get())) {
    case SQLITE_ROW:
      return true;
    case SQLITE_DONE:
      return false;
    default:
      return SqliteError(sqlite3_db_handle(statement_.get()));
  }
}

absl::Status Statement::Run() { return Step().status(); }

int64_t Statement::Int(int column) const { return sqlite3_column_int64(statement_.get(), column); }

std::string Statement::Text(int column) const {
  const auto* text = sqlite3_column_text(statement_.get(), column);
  if (text == nullptr) return {};
  return {reinterpret_cast<const char*>(text),
          static_cast<size_t>(sqlite3_column_bytes(statement_.get(), column))};
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::string& path) {
  sqlite3* handle = nullptr;
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX;
  const int code = sqlite3_open_v2(path.c_str(), &handle, flags, nullptr);
  std::unique_ptr<Database> database(new Database(handle));
  if (code != SQLITE_OK) return SqliteError(handle);
  sqlite3_busy_timeout(handle, kBusyMs);
  const auto status = database->Execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;");
  if (!status.ok()) return status;
  return database;
}

Database::~Database() { sqlite3_close(handle_); }

absl::Status Database::Execute(const char* sql) {
  if (sqlite3_exec(handle_, sql, nullptr, nullptr, nullptr) == SQLITE_OK) return absl::OkStatus();
  return SqliteError(handle_);
}

absl::StatusOr<Statement> Database::Prepare(std::string_view sql) {
  sqlite3_stmt* statement = nullptr;
  if (sqlite3_prepare_v2(handle_, sql.data(), sql.size(), &statement, nullptr) != SQLITE_OK) {
    return SqliteError(handle_);
  }
  return Statement(statement);
}

}  // namespace babai

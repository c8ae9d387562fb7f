// SQLite as this folder uses it: one connection, prepared statements, errors as absl::Status.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct sqlite3;
struct sqlite3_stmt;

namespace babai {

// One use of a prepared statement: bind, step, read. Columns and parameters count from 0.
class Statement {
 public:
  Statement(Statement&&) = default;
  Statement& Bind(std::string_view text);
  Statement& Bind(int64_t value);
  Statement& BindNull();

  // True: a row is there. Errors: ResourceExhausted OUT_OF_DISK, DataLoss (damaged file), Internal.
  absl::StatusOr<bool> Step();
  absl::Status Run();  // a statement without rows

  int64_t Int(int column) const;
  std::string Text(int column) const;

 private:
  friend class Database;
  explicit Statement(sqlite3_stmt* statement) : statement_(statement, Finalize) {}
  static void Finalize(sqlite3_stmt* statement);

  std::unique_ptr<sqlite3_stmt, void (*)(sqlite3_stmt*)> statement_;
  int bound_ = 0;
};

// Not thread-safe.
class Database {
 public:
  // Write-ahead log, and every commit reaches the disk before it returns (synchronous = FULL).
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::string& path);
  ~Database();
  Database(const Database&) = delete;

  absl::Status Execute(const char* sql);  // without parameters; may be several statements
  absl::StatusOr<Statement> Prepare(std::string_view sql);

 private:
  explicit Database(sqlite3* handle) : handle_(handle) {}
  sqlite3* handle_;
};

}  // namespace babai

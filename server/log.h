// One line an event on stderr: time, level, message, key=value; or a JSON object a line.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

namespace babai {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

struct LogField {
  std::string_view key;
  std::string value;
};

// Thread-safe: a line is one write(). Values may hold anything; control characters are escaped, so
// a caller's text can not forge a line; empty ones are left out.
class Log {
 public:
  Log(LogFormat format, LogLevel least) : format_(format), least_(least) {}

  void Write(LogLevel level, std::string_view message,
             std::initializer_list<LogField> fields = {}) const;

 private:
  LogFormat format_;
  LogLevel least_;
};

// What Write() writes; `time` as it should appear.
std::string FormatLogLine(LogFormat format, std::string_view time, LogLevel level,
                          std::string_view message, std::initializer_list<LogField> fields);

}  // namespace babai

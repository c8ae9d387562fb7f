#include "client/output.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/refusal.h"

namespace babai::client {
namespace {

bool LooksLikeIds(const std::string& text) {
  return text.find_first_not_of("0123456789-, \t") == std::string::npos;
}

}  // namespace

void PrintJson(const Json& json) {
  PrintText(json.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void PrintText(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fputc('\n', stdout);
  std::fflush(stdout);
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "babai: %s\n", ToText(status).c_str());
  return 1;
}

std::string BytesText(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes < 10'000) return absl::StrCat(bytes, " B");
  if (bytes < 1'000'000) return absl::StrFormat("%.1f kB", value / 1e3);
  if (bytes < 1'000'000'000) return absl::StrFormat("%.1f MB", value / 1e6);
  return absl::StrFormat("%.2f GB", value / 1e9);
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file;
  std::error_code error;  // a folder opens like a file, and reads as an empty one
  if (path != "-" && !std::filesystem::is_directory(path, error)) {
    file.open(path, std::ios::binary);
  }
  std::istream& in = path == "-" ? std::cin : file;
  std::ostringstream text;
  text << in.rdbuf();
  if (path != "-" && (!file.is_open() || text.bad())) {
    return absl::InvalidArgumentError(absl::StrCat("cannot read the file '", path, "'"));
  }
  return text.str();
}

absl::StatusOr<std::vector<int32_t>> ReadIds(const std::string& ids_or_path) {
  std::string text = ids_or_path;
  if (!LooksLikeIds(text)) {
    auto file = ReadText(ids_or_path);
    if (!file.ok()) return file.status();
    text = *std::move(file);
  }
  std::vector<int32_t> ids;
  for (const absl::string_view part :
       absl::StrSplit(text, absl::ByAnyChar(", \t\r\n[]"), absl::SkipEmpty())) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(part, &id)) {
      return absl::InvalidArgumentError(absl::StrCat("'", part, "' is not a token id"));
    }
    ids.push_back(id);
  }
  return ids;
}

}  // namespace babai::client

// Printing shared by the verbs.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/json.h"

namespace babai::client {

void PrintJson(const Json& json);         // one object on stdout
void PrintText(const std::string& text);  // a line on stdout
int Fail(const absl::Status& status);     // code, reason, field on stderr; returns 1

// "81.3 MB"
std::string BytesText(int64_t bytes);

// A whole local file, or stdin for "-". InvalidArgument names the path.
absl::StatusOr<std::string> ReadText(const std::string& path);

// Numbers separated by commas or white space, given as they are or as the name of a file of them.
absl::StatusOr<std::vector<int32_t>> ReadIds(const std::string& ids_or_path);

}  // namespace babai::client

#include "server/store/model_uri.h"

#include <algorithm>
#include <cctype>
#include <optional>
#include <system_error>

#include "absl/strings/ascii.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr size_t kMaxUriBytes = 4096;

absl::Status BadUri(std::string_view field, std::string_view rule) {
  return Refuse(absl::StatusCode::kInvalidArgument, reason::kInvalidUri, field, rule);
}

bool IsControl(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

// The scheme in lower case, if the text has one (RFC 3986, 3.1). A path starts with '/', so a colon
// inside a path is never taken for a scheme's.
std::optional<std::string> SchemeOf(std::string_view text) {
  const size_t colon = text.find(':');
  if (colon == 0 || colon == std::string_view::npos) return std::nullopt;
  const std::string_view name = text.substr(0, colon);
  const bool valid =
      absl::ascii_isalpha(name[0]) && std::all_of(name.begin(), name.end(), [](char c) {
        return absl::ascii_isalnum(c) || c == '+' || c == '-' || c == '.';
      });
  if (!valid) return std::nullopt;
  return absl::AsciiStrToLower(std::string(name));
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Undoes percent-encoding. Characters that would change the path's structure must be written
// plainly: that leaves one spelling for the checks that follow.
absl::StatusOr<std::string> PercentDecode(std::string_view text, std::string_view field) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    const int high = i + 2 < text.size() ? HexValue(text[i + 1]) : -1;
    const int low = i + 2 < text.size() ? HexValue(text[i + 2]) : -1;
    if (high < 0 || low < 0) return BadUri(field, "'%' is not followed by two hexadecimal digits");
    const char c = static_cast<char>(high * 16 + low);
    if (IsControl(c) || c == '.' || c == '/' || c == '\\') {
      return BadUri(field, "percent-encoded dots, slashes and control characters are refused");
    }
    out += c;
    i += 2;
  }
  return out;
}

std::string PercentEncode(std::string_view path) {
  constexpr std::string_view kPlain = "-._~/!$&'()*+,;=:@";
  constexpr char kDigits[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : path) {
    if (absl::ascii_isalnum(c) || kPlain.find(c) != std::string_view::npos) {
      out += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      out += {'%', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return out;
}

absl::Status CheckCharacters(std::string_view text, std::string_view field) {
  if (text.empty()) return BadUri(field, "is empty; give file:///path or an absolute path");
  if (text.size() > kMaxUriBytes) return BadUri(field, "is longer than 4096 bytes");
  for (const char c : text) {
    if (IsControl(c)) return BadUri(field, "holds a control character");
    if (c == '\\') return BadUri(field, "holds a backslash");
  }
  return absl::OkStatus();
}

absl::Status RefuseScheme(const std::string& scheme, std::string_view field) {
  if (scheme == "https" || scheme == "hf" || scheme == "s3") {
    return Refuse(absl::StatusCode::kUnimplemented, reason::kUnimplemented, field,
                  scheme +
                      ":// sources come in a later release; fetch the model to a directory "
                      "under --model_roots and give its file:// URI");
  }
  return BadUri(field, "scheme '" + scheme + "' is not supported; give file:///path");
}

// What follows "file:", as a path.
absl::StatusOr<std::string> PathOfFileUri(std::string_view rest, std::string_view field) {
  if (rest.substr(0, 2) != "//") return BadUri(field, "a file URI is written file:///path");
  rest.remove_prefix(2);
  if (rest.empty() || rest[0] != '/') return BadUri(field, "a file URI must not name a host");
  if (rest.find_first_of("?#") != std::string_view::npos) {
    return BadUri(field, "a file URI has no query and no fragment");
  }
  return PercentDecode(rest, field);
}

absl::Status CheckPath(const std::string& path, std::string_view field) {
  if (path.empty() || path[0] != '/') return BadUri(field, "the path must be absolute");
  if (path.substr(0, 2) == "//") return BadUri(field, "'//host/path' is not a path");
  for (const auto& part : std::filesystem::path(path)) {
    if (part == "..") return BadUri(field, "'..' is refused");
    if (part.native().size() > 255) return BadUri(field, "a part of the path is over 255 bytes");
  }
  return absl::OkStatus();
}

bool IsUnder(const std::filesystem::path& path, const std::filesystem::path& root) {
  const auto [root_end, path_at] =
      std::mismatch(root.begin(), root.end(), path.begin(), path.end());
  return root_end == root.end();
}

// The first of `roots`, links followed, that `path` lies under; empty: none.
std::filesystem::path RootOf(const std::filesystem::path& path,
                             const std::vector<std::filesystem::path>& roots) {
  for (const auto& root : roots) {
    std::error_code error;
    std::filesystem::path real = std::filesystem::canonical(root, error);
    if (!error && IsUnder(path, real)) return real;
  }
  return {};
}

}  // namespace

absl::StatusOr<ModelUri> ModelUri::Parse(std::string_view text, std::string_view field) {
  if (auto status = CheckCharacters(text, field); !status.ok()) return status;
  std::string path(text);
  if (const auto scheme = SchemeOf(text)) {
    if (*scheme != "file") return RefuseScheme(*scheme, field);
    auto decoded = PathOfFileUri(text.substr(scheme->size() + 1), field);
    if (!decoded.ok()) return decoded.status();
    path = *std::move(decoded);
  }
  if (auto status = CheckPath(path, field); !status.ok()) return status;

  ModelUri uri;
  uri.path_ = std::filesystem::path(path).lexically_normal();
  if (!uri.path_.has_filename()) uri.path_ = uri.path_.parent_path();  // a slash at the end
  uri.text_ = "file://" + PercentEncode(uri.path_.native());
  uri.field_ = field;
  return uri;
}

absl::StatusOr<std::filesystem::path> ResolveLocal(const ModelUri& uri,
                                                   const std::vector<std::filesystem::path>& roots,
                                                   std::filesystem::path* root) {
  // weakly_canonical follows the links of the part that exists, so that a missing file outside the
  // roots is refused like one that is there: the answer tells nothing about the rest of the disk.
  std::error_code error;
  const std::filesystem::path real = std::filesystem::weakly_canonical(uri.path(), error);
  const std::filesystem::path allowed = error ? std::filesystem::path() : RootOf(real, roots);
  if (allowed.empty()) {
    return Refuse(
        absl::StatusCode::kPermissionDenied, reason::kSourceNotAllowed, uri.field(),
        uri.text() + " is not under a directory that this server may read (--model_roots)");
  }
  const auto status = std::filesystem::status(real, error);
  if (!std::filesystem::exists(status)) {
    return Refuse(absl::StatusCode::kNotFound, reason::kSourceNotFound, uri.field(),
                  uri.text() + " does not exist");
  }
  if (!std::filesystem::is_directory(status) && !std::filesystem::is_regular_file(status)) {
    return BadUri(uri.field(), uri.text() + " is neither a directory nor a regular file");
  }
  if (root != nullptr) *root = allowed;
  if (root != nullptr) *root = allowed;
  return real;
}

}  // namespace babai

#include "server/text/tokenizer_files.h"

#include <cerrno>
#include <fstream>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/reason/reason.h"
#include "server/text/ffi_call.h"

namespace babai {
namespace {

constexpr char kTokenizer[] = "tokenizer.json";
constexpr char kConfig[] = "tokenizer_config.json";
constexpr char kTemplate[] = "chat_template.jinja";

// Far above any published file; the tokenizer itself refuses above 64 MiB.
constexpr std::streamsize kMaxFileBytes = std::streamsize{80} << 20;

absl::Status Write(const std::filesystem::path& dir, const char* name, std::string_view text) {
  errno = 0;
  std::ofstream file(dir / name, std::ios::binary | std::ios::trunc);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  if (file.good()) return absl::OkStatus();
  if (errno == ENOSPC || errno == EDQUOT) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfDisk, name,
                  absl::StrCat("no space left to write ", name));
  }
  return Refuse(absl::StatusCode::kUnavailable, reason::kIoError, name,
                absl::StrCat("cannot write ", name));
}

// Nothing: there is no such file.
absl::StatusOr<std::optional<std::string>> Read(const std::filesystem::path& dir,
                                                const char* name) {
  std::ifstream file(dir / name, std::ios::binary | std::ios::ate);
  if (!file) return std::nullopt;
  const std::streamsize size = file.tellg();
  if (size < 0 || size > kMaxFileBytes) {
    return Refuse(
        absl::StatusCode::kInvalidArgument, reason::kInvalidTokenizer, name,
        absl::StrCat(name, " has ", size, " bytes; at most ", kMaxFileBytes, " are read"));
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(text.data(), size)) {
    return Refuse(absl::StatusCode::kUnavailable, reason::kIoError, name,
                  absl::StrCat("cannot read ", name));
  }
  return text;
}

absl::Status ParseConfig(const std::string& text, ChatFiles& chat) {
  babai_text_bytes bos = {}, eos = {};
  const babai_text_code code = babai_text_config_read(Slice(text), &bos, &eos);
  if (code != BABAI_TEXT_OK) return FfiStatus(code, kConfig);
  chat.bos_token = *Take(code, kConfig, bos);
  chat.eos_token = *Take(code, kConfig, eos);
  return absl::OkStatus();
}

absl::StatusOr<std::string> MakeConfig(const ChatFiles& chat) {
  babai_text_bytes config = {};
  const babai_text_code code =
      babai_text_config_write(Slice(chat.bos_token), Slice(chat.eos_token), &config);
  return Take(code, kConfig, config);
}

}  // namespace

absl::Status WriteTokenizerFiles(const std::filesystem::path& dir, std::string_view tokenizer_json,
                                 const ChatFiles& chat) {
  const absl::StatusOr<std::string> config = MakeConfig(chat);
  if (!config.ok()) return config.status();
  absl::Status status = Write(dir, kTokenizer, tokenizer_json);
  if (status.ok()) status = Write(dir, kConfig, *config);
  if (!status.ok()) return status;
  if (!chat.chat_template.empty()) return Write(dir, kTemplate, chat.chat_template);
  std::error_code ignored;  // a template that stays is found by the next Write or Read
  std::filesystem::remove(dir / kTemplate, ignored);
  return absl::OkStatus();
}

absl::StatusOr<TokenizerFiles> ReadTokenizerFiles(const std::filesystem::path& dir) {
  TokenizerFiles files;
  absl::StatusOr<std::optional<std::string>> json = Read(dir, kTokenizer);
  if (!json.ok()) return json.status();
  if (!json->has_value()) {
    return Refuse(absl::StatusCode::kNotFound, reason::kInvalidTokenizer, kTokenizer,
                  "tokenizer.json is missing");
  }
  files.tokenizer_json = **std::move(json);
  absl::StatusOr<std::optional<std::string>> config = Read(dir, kConfig);
  if (!config.ok()) return config.status();
  if (config->has_value()) {
    if (absl::Status status = ParseConfig(**config, files.chat); !status.ok()) return status;
  }
  absl::StatusOr<std::optional<std::string>> chat_template = Read(dir, kTemplate);
  if (!chat_template.ok()) return chat_template.status();
  files.chat.chat_template = std::move(*chat_template).value_or("");
  return files;
}

}  // namespace babai

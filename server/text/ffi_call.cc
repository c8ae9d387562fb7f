#include "server/text/ffi_call.h"

#include "server/reason/reason.h"

namespace babai {

absl::Status FfiStatus(babai_text_code code, std::string_view field) {
  const babai_text_slice error = babai_text_last_error();
  const std::string_view words(error.data, error.size);
  switch (code) {
    case BABAI_TEXT_OK:
      return absl::OkStatus();
    case BABAI_TEXT_INVALID_TOKENIZER:
      return Refuse(absl::StatusCode::kInvalidArgument, reason::kInvalidTokenizer, field, words);
    case BABAI_TEXT_INVALID_TEXT:
    case BABAI_TEXT_INVALID_ID:
      return InvalidField(field, words);
    case BABAI_TEXT_TEMPLATE_FAILED:
      return Refuse(absl::StatusCode::kInvalidArgument, reason::kTemplateFailed, field, words);
    case BABAI_TEXT_INTERNAL:
      break;
  }
  return Refuse(absl::StatusCode::kInternal, reason::kInternal, field, words);
}

absl::StatusOr<std::string> Take(babai_text_code code, std::string_view field,
                                 babai_text_bytes bytes) {
  if (code != BABAI_TEXT_OK) return FfiStatus(code, field);
  std::string text(bytes.data, bytes.size);
  babai_text_bytes_free(bytes);
  return text;
}

absl::StatusOr<std::vector<int32_t>> Take(babai_text_code code, std::string_view field,
                                          babai_text_ids ids) {
  if (code != BABAI_TEXT_OK) return FfiStatus(code, field);
  std::vector<int32_t> values(ids.data, ids.data + ids.size);
  babai_text_ids_free(ids);
  return values;
}

}  // namespace babai

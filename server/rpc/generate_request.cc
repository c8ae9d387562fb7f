#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "server/reason/reason.h"
#include "server/rpc/limits.h"
#include "server/rpc/requests.h"
#include "server/store/catalog.h"

namespace babai {
namespace {

using WireRequest = v1::GenerateRequest;

absl::Status CheckRequestId(const std::string& id) {
  const bool printable =
      std::all_of(id.begin(), id.end(), [](char c) { return c >= 0x21 && c <= 0x7E; });
  if (printable && static_cast<int64_t>(id.size()) <= limits::kRequestIdBytes) {
    return absl::OkStatus();
  }
  return InvalidField("request_id", "must be at most 64 printable ASCII characters");
}

absl::Status CheckPrompt(const WireRequest& request) {
  const std::string at_most = absl::StrCat("must be at most ", limits::kPromptBytes, " bytes");
  switch (request.prompt_case()) {
    case WireRequest::kText:
      if (request.text().empty()) return InvalidField("text", "must not be empty");
      if (static_cast<int64_t>(request.text().size()) > limits::kPromptBytes) {
        return InvalidField("text", at_most);
      }
      return absl::OkStatus();
    case WireRequest::kTokenIds:
      if (request.token_ids().ids().empty()) {
        return InvalidField("token_ids.ids", "must not be empty");
      }
      if (request.token_ids().ids_size() > limits::kPromptTokens) {
        return InvalidField("token_ids.ids",
                            absl::StrCat("must be at most ", limits::kPromptTokens, " ids"));
      }
      return absl::OkStatus();
    case WireRequest::kChat:
      return ToChatMessages(request.chat().messages(), "chat.messages").status();
    default:
      return InvalidField("prompt", "set one of text, token_ids or chat");
  }
}

// Options of the tokenizer mean something for text alone.
absl::Status CheckTextOptions(const WireRequest& request) {
  if (request.has_text()) return absl::OkStatus();
  if (request.has_add_special_tokens()) {
    return InvalidField("add_special_tokens", "goes with text only");
  }
  if (request.has_parse_special_tokens()) {
    return InvalidField("parse_special_tokens", "goes with text only");
  }
  return absl::OkStatus();
}

absl::Status CheckStopping(const v1::Stopping& stopping) {
  if (stopping.has_max_tokens() && stopping.max_tokens() < 1) {
    return InvalidField("stopping.max_tokens", "must be at least 1");
  }
  if (stopping.min_tokens() < 0) return InvalidField("stopping.min_tokens", "must be at least 0");
  if (stopping.min_tokens() > 0) {
    return NotInThisRelease("stopping.min_tokens", "a least number of tokens");
  }
  if (stopping.stop_size() > limits::kStopStrings) {
    return InvalidField("stopping.stop",
                        absl::StrCat("at most ", limits::kStopStrings, " stop strings"));
  }
  for (int i = 0; i < stopping.stop_size(); ++i) {
    const auto size = static_cast<int64_t>(stopping.stop(i).size());
    if (size < 1 || size > limits::kStopStringBytes) {
      return InvalidField(absl::StrCat("stopping.stop[", i, "]"),
                          absl::StrCat("must have 1 to ", limits::kStopStringBytes, " bytes"));
    }
  }
  if (stopping.stop_token_ids_size() > limits::kStopTokens) {
    return InvalidField("stopping.stop_token_ids",
                        absl::StrCat("at most ", limits::kStopTokens, " ids"));
  }
  return absl::OkStatus();
}

absl::Status CheckOutput(const v1::Output& output) {
  if (output.top_logprobs() < 0 || output.top_logprobs() > 20) {
    return InvalidField("output.top_logprobs", "must be in [0, 20]");
  }
  if (output.top_logprobs() > 0) {
    return NotInThisRelease("output.top_logprobs", "log-probabilities of alternatives");
  }
  if (output.prompt_logprobs()) {
    return NotInThisRelease("output.prompt_logprobs", "log-probabilities of the prompt");
  }
  return absl::OkStatus();
}

absl::Status CheckConstraint(const WireRequest& request) {
  switch (request.constraint_case()) {
    case WireRequest::kJsonSchema:
      return NotInThisRelease("json_schema", "constrained output");
    case WireRequest::kRegex:
      return NotInThisRelease("regex", "constrained output");
    case WireRequest::kGrammar:
      return NotInThisRelease("grammar", "constrained output");
    default:
      return absl::OkStatus();
  }
}

absl::Status CheckNumSequences(const WireRequest& request) {
  if (!request.has_num_sequences() || request.num_sequences() == 1) return absl::OkStatus();
  if (request.num_sequences() < 1 || request.num_sequences() > 8) {
    return InvalidField("num_sequences", "must be in [1, 8]");
  }
  return NotInThisRelease("num_sequences", "more than one answer to a request");
}

absl::StatusOr<std::vector<int32_t>> PromptIds(const WireRequest& request,
                                               const Tokenizer& tokenizer) {
  if (request.has_text()) {
    const bool add_special = !request.has_add_special_tokens() || request.add_special_tokens();
    auto ids = tokenizer.Encode(request.text(), add_special, request.parse_special_tokens());
    if (ids.ok() && ids->empty()) return InvalidField("text", "has no tokens");
    return ids;
  }
  if (request.has_token_ids()) {
    const auto& ids = request.token_ids().ids();
    if (auto s = CheckTokenIds(ids, tokenizer.vocab_size(), "token_ids.ids"); !s.ok()) return s;
    return std::vector<int32_t>(ids.begin(), ids.end());
  }
  auto messages = ToChatMessages(request.chat().messages(), "chat.messages");
  if (!messages.ok()) return messages.status();
  const v1::ChatPrompt& chat = request.chat();
  return tokenizer.EncodeChat(*messages,
                              !chat.has_add_generation_prompt() || chat.add_generation_prompt());
}

uint64_t RandomSeed() {
  thread_local std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

absl::StatusOr<SamplingParams> ToSampling(const v1::Sampling& sampling, int64_t vocab) {
  SamplingParams params;
  if (sampling.has_temperature()) params.temperature = sampling.temperature();
  if (sampling.has_top_k()) params.top_k = sampling.top_k();
  if (sampling.has_top_p()) params.top_p = sampling.top_p();
  if (sampling.has_min_p()) params.min_p = sampling.min_p();
  if (sampling.has_presence_penalty()) params.presence_penalty = sampling.presence_penalty();
  if (sampling.has_frequency_penalty()) params.frequency_penalty = sampling.frequency_penalty();
  if (sampling.has_repetition_penalty()) params.repetition_penalty = sampling.repetition_penalty();
  params.seed = sampling.has_seed() ? sampling.seed() : RandomSeed();
  if (static_cast<int64_t>(sampling.logit_bias().size()) > limits::kLogitBiasEntries) {
    return InvalidField("sampling.logit_bias",
                        absl::StrCat("at most ", limits::kLogitBiasEntries, " entries"));
  }
  params.logit_bias.assign(sampling.logit_bias().begin(), sampling.logit_bias().end());
  std::sort(params.logit_bias.begin(), params.logit_bias.end());
  if (auto s = ValidateSampling(params, vocab); !s.ok()) return s;
  return params;
}

}  // namespace

absl::Status NotInThisRelease(std::string_view field, std::string_view what) {
  return Refuse(absl::StatusCode::kUnimplemented, reason::kUnimplemented, field,
                absl::StrCat(std::string(what), " is not in this release"));
}

absl::Status CheckGenerate(const WireRequest& request) {
  if (auto s = CheckRequestId(request.request_id()); !s.ok()) return s;
  if (auto s = ValidateModelName(request.model(), "model"); !s.ok()) return s;
  if (auto s = CheckPrompt(request); !s.ok()) return s;
  if (auto s = CheckTextOptions(request); !s.ok()) return s;
  if (auto s = CheckStopping(request.stopping()); !s.ok()) return s;
  if (auto s = CheckOutput(request.output()); !s.ok()) return s;
  if (auto s = CheckConstraint(request); !s.ok()) return s;
  return CheckNumSequences(request);
}

absl::StatusOr<GenerateRequest> ToGenerateRequest(const WireRequest& request,
                                                  const Tokenizer& tokenizer, absl::Time deadline) {
  GenerateRequest out;
  out.model = request.model();
  auto sampling = ToSampling(request.sampling(), tokenizer.vocab_size());
  if (!sampling.ok()) return sampling.status();
  out.sampling = *std::move(sampling);

  const v1::Stopping& stopping = request.stopping();
  if (auto s = CheckTokenIds(stopping.stop_token_ids(), tokenizer.vocab_size(),
                             "stopping.stop_token_ids");
      !s.ok()) {
    return s;
  }
  out.max_tokens = stopping.max_tokens();
  out.stop.assign(stopping.stop().begin(), stopping.stop().end());
  out.stop_token_ids.assign(stopping.stop_token_ids().begin(), stopping.stop_token_ids().end());
  out.ignore_eos = stopping.ignore_eos();
  out.include_stop = stopping.include_stop();

  const v1::Output& output = request.output();
  out.logprobs = output.logprobs();
  out.skip_special_tokens = !output.has_skip_special_tokens() || output.skip_special_tokens();
  out.deadline = deadline;

  auto prompt = PromptIds(request, tokenizer);
  if (!prompt.ok()) return prompt.status();
  out.prompt = *std::move(prompt);
  return out;
}

absl::StatusOr<std::vector<ChatMessage>> ToChatMessages(
    const google::protobuf::RepeatedPtrField<v1::ChatMessage>& messages, std::string_view field) {
  const std::string name(field);
  if (messages.empty()) return InvalidField(name, "must not be empty");
  if (messages.size() > limits::kChatMessages) {
    return InvalidField(name, absl::StrCat("at most ", limits::kChatMessages, " messages"));
  }
  std::vector<ChatMessage> out;
  int64_t bytes = 0;
  for (int i = 0; i < messages.size(); ++i) {
    const v1::ChatMessage& message = messages[i];
    const auto role = static_cast<int64_t>(message.role().size());
    if (role < 1 || role > limits::kRoleBytes) {
      return InvalidField(absl::StrCat(name, "[", i, "].role"),
                          absl::StrCat("must have 1 to ", limits::kRoleBytes, " bytes"));
    }
    bytes += static_cast<int64_t>(message.content().size());
    if (bytes > limits::kPromptBytes) {
      return InvalidField(name,
                          absl::StrCat("at most ", limits::kPromptBytes, " bytes of content"));
    }
    out.push_back({message.role(), message.content()});
  }
  return out;
}

absl::Status CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids, int64_t vocab,
                           std::string_view field) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab) {
      return InvalidField(absl::StrCat(std::string(field), "[", i, "]"),
                          absl::StrCat("token id ", ids[i], " is outside [0, ", vocab, ")"));
    }
  }
  return absl::OkStatus();
}

}  // namespace babai

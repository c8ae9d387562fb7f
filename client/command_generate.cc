// generate, chat and evaluate.
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/commands.h"
#include "client/json.h"
#include "client/output.h"

namespace babai::client {
namespace {

void SetSampling(const GenerateFlags& flags, v1::Sampling& sampling) {
  if (flags.temperature) sampling.set_temperature(*flags.temperature);
  if (flags.top_k) sampling.set_top_k(*flags.top_k);
  if (flags.top_p) sampling.set_top_p(*flags.top_p);
  if (flags.min_p) sampling.set_min_p(*flags.min_p);
  if (flags.presence_penalty) sampling.set_presence_penalty(*flags.presence_penalty);
  if (flags.frequency_penalty) sampling.set_frequency_penalty(*flags.frequency_penalty);
  if (flags.repetition_penalty) sampling.set_repetition_penalty(*flags.repetition_penalty);
  if (flags.seed) sampling.set_seed(*flags.seed);
}

// Everything but the prompt.
v1::GenerateRequest ToRequest(const GenerateFlags& flags) {
  v1::GenerateRequest request;
  request.set_model(flags.model);
  SetSampling(flags, *request.mutable_sampling());
  v1::Stopping& stopping = *request.mutable_stopping();
  if (flags.max_tokens) stopping.set_max_tokens(*flags.max_tokens);
  for (const std::string& stop : flags.stop) stopping.add_stop(stop);
  stopping.set_ignore_eos(flags.ignore_eos);
  stopping.set_include_stop(flags.include_stop);
  request.mutable_output()->set_logprobs(flags.logprobs);
  request.mutable_output()->set_skip_special_tokens(!flags.keep_special);
  return request;
}

// The stream put together; `show` prints the text as it comes.
absl::StatusOr<v1::GenerateResult> Stream(const Session& session,
                                          const v1::GenerateRequest& request, bool show,
                                          Canceller& canceller) {
  v1::GenerateResult result;
  const auto on_event = [&](const v1::GenerateResponse& event) {
    if (event.has_prompt_info()) *result.mutable_prompt_info() = event.prompt_info();
    if (event.has_finish()) *result.mutable_finish() = event.finish();
    const v1::Delta& delta = event.delta();
    result.mutable_text()->append(delta.text());
    result.mutable_token_ids()->MergeFrom(delta.token_ids());
    result.mutable_logprobs()->MergeFrom(delta.logprobs());
    if (!show) return;
    std::fwrite(delta.text().data(), 1, delta.text().size(), stdout);
    std::fflush(stdout);
  };
  const absl::Status status = session.client.Generate(request, on_event, &canceller);
  if (show) std::fputc('\n', stdout);
  if (!status.ok()) return status;
  return result;
}

void PrintStats(const v1::Finish& finish) {
  std::fprintf(stderr, "[%lld prompt + %lld tokens, %.1f tok/s, %s]\n",
               static_cast<long long>(finish.usage().prompt_tokens()),
               static_cast<long long>(finish.usage().completion_tokens()), TokensPerSecond(finish),
               ReasonName(finish.reason()));
}

absl::StatusOr<v1::GenerateResult> Answer(const Session& session, const GenerateFlags& flags,
                                          const v1::GenerateRequest& request) {
  Canceller canceller;
  session.interrupts.Handle([&](int count) {
    if (count > 1) _exit(1);
    canceller.Cancel();
  });
  const bool show = !session.json && !flags.no_stream;
  auto result = flags.no_stream ? session.client.GenerateOnce(request, &canceller)
                                : Stream(session, request, show, canceller);
  session.interrupts.Handle(nullptr);
  if (absl::IsCancelled(result.status())) return absl::CancelledError("stopped by Ctrl-C");
  if (!result.ok()) return result;
  if (session.json) {
    PrintJson(ToJson(*result));
    return result;
  }
  if (flags.no_stream) PrintText(result->text());
  PrintStats(result->finish());
  return result;
}

void AddMessage(v1::ChatPrompt& chat, const char* role, const std::string& content) {
  v1::ChatMessage* message = chat.add_messages();
  message->set_role(role);
  message->set_content(content);
}

// Lines from the terminal until end of input or /quit; /reset forgets.
int Converse(const Session& session, const GenerateFlags& flags, v1::GenerateRequest request) {
  const v1::ChatPrompt start = request.chat();
  const bool terminal = isatty(STDIN_FILENO) == 1;
  if (terminal)
    std::fprintf(stderr, "Chat with %s. /reset forgets, /quit leaves.\n", flags.model.c_str());
  std::string line;
  while (true) {
    if (terminal) std::fprintf(stderr, "> ");
    if (!std::getline(std::cin, line) || line == "/quit") return 0;
    if (line == "/reset") *request.mutable_chat() = start;
    if (line.empty() || line == "/reset") continue;
    AddMessage(*request.mutable_chat(), "user", line);
    const auto result = Answer(session, flags, request);
    if (!result.ok()) {
      Fail(result.status());
      if (!terminal) return 1;
      request.mutable_chat()->mutable_messages()->RemoveLast();
      continue;
    }
    AddMessage(*request.mutable_chat(), "assistant", result->text());
  }
}

absl::StatusOr<v1::EvaluateRequest> ToRequest(const EvaluateFlags& flags) {
  v1::EvaluateRequest request;
  request.set_model(flags.model);
  request.set_reference(flags.reference);
  if (flags.context) request.set_context(*flags.context);
  if (flags.max_windows) request.set_max_windows(*flags.max_windows);
  if (flags.served_numerics) request.set_numerics(v1::EvaluateRequest::NUMERICS_SERVING);
  if (!flags.ids.empty()) {
    const auto ids = ReadIds(flags.ids);
    if (!ids.ok()) return ids.status();
    request.mutable_token_ids()->mutable_ids()->Add(ids->begin(), ids->end());
    return request;
  }
  auto text = ReadText(flags.text);
  if (!text.ok()) return text.status();
  request.set_text(*std::move(text));
  return request;
}

absl::StatusOr<Operation> WaitForEvaluation(const Session& session, Operation operation) {
  ProgressLine progress;
  while (!operation.done()) {
    usleep(100'000);
    auto now = session.client.GetOperation(operation.name());
    if (!now.ok()) return now.status();
    operation = *std::move(now);
    v1::EvaluateMetadata metadata;
    if (operation.metadata().UnpackTo(&metadata)) progress.Show(metadata);
  }
  return operation;
}

std::string EvaluationText(const v1::EvaluateResult& result) {
  std::string text =
      absl::StrFormat("%s: perplexity %.6f over %d tokens (%d windows)", result.model(),
                      result.perplexity(), result.tokens(), result.windows());
  if (!result.has_comparison()) return text;
  const auto& c = result.comparison();
  absl::StrAppendFormat(&text,
                        "\n  beside %s: its perplexity %.6f, mean KL %.6f nats, 99 %% %.4f, "
                        "99.9 %% %.4f, max %.4f, same best token %.3f %%",
                        c.reference(), c.reference_perplexity(), c.mean_kl(), c.kl_p99(),
                        c.kl_p999(), c.kl_max(), 100 * c.top1_agreement());
  return text;
}

}  // namespace

int RunGenerate(const Session& session, const GenerateFlags& flags) {
  v1::GenerateRequest request = ToRequest(flags);
  if (!flags.ids.empty()) {
    const auto ids = ReadIds(flags.ids);
    if (!ids.ok()) return Fail(ids.status());
    request.mutable_token_ids()->mutable_ids()->Add(ids->begin(), ids->end());
  } else {
    auto text = flags.prompt == "-" ? ReadText("-") : flags.prompt;
    if (!text.ok()) return Fail(text.status());
    request.set_text(*std::move(text));
    if (flags.parse_special) request.set_parse_special_tokens(true);
  }
  const auto result = Answer(session, flags, request);
  return result.ok() ? 0 : Fail(result.status());
}

int RunChat(const Session& session, const GenerateFlags& flags) {
  v1::GenerateRequest request = ToRequest(flags);
  v1::ChatPrompt& chat = *request.mutable_chat();
  if (!flags.system.empty()) AddMessage(chat, "system", flags.system);
  if (flags.prompt.empty()) return Converse(session, flags, std::move(request));
  auto text = flags.prompt == "-" ? ReadText("-") : flags.prompt;
  if (!text.ok()) return Fail(text.status());
  AddMessage(chat, "user", *text);
  const auto result = Answer(session, flags, request);
  return result.ok() ? 0 : Fail(result.status());
}

int RunEvaluate(const Session& session, const EvaluateFlags& flags) {
  const auto request = ToRequest(flags);
  if (!request.ok()) return Fail(request.status());
  auto operation = session.client.Evaluate(*request);
  if (!operation.ok()) return Fail(operation.status());
  const std::string id = IdOf(*operation);
  session.interrupts.Handle([&](int count) {
    if (count > 1) _exit(1);
    (void)session.client.CancelOperation(id);
  });
  operation = WaitForEvaluation(session, *std::move(operation));
  session.interrupts.Handle(nullptr);
  if (!operation.ok()) return Fail(operation.status());
  const auto result = ResultOf<v1::EvaluateResult>(*operation);
  if (!result.ok()) return Fail(result.status());
  if (session.json) {
    PrintJson(ToJson(*result));
  } else {
    PrintText(EvaluationText(*result));
  }
  return 0;
}

}  // namespace babai::client

// quantize and jobs.
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/commands.h"
#include "client/json.h"
#include "client/output.h"

namespace babai::client {
namespace {

// A path of this host as the URI the server expects; anything with a scheme stays as it is.
std::string ToUri(const std::string& source) {
  if (source.find("://") != std::string::npos || absl::StartsWith(source, "file:")) return source;
  std::error_code error;
  const auto path = std::filesystem::absolute(source, error);
  return error ? source : absl::StrCat("file://", path.lexically_normal().string());
}

absl::Status AddJsonlTexts(const std::string& file, v1::Calibration::Texts& texts) {
  for (const absl::string_view line : absl::StrSplit(file, '\n', absl::SkipWhitespace())) {
    const Json json = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("text") || !json["text"].is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat("a line of the .jsonl file is not {\"text\": ...}: ", line.substr(0, 60)));
    }
    texts.add_texts(json["text"].get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status SetCalibration(const QuantizeFlags& flags, v1::Calibration& calibration) {
  if (flags.samples) calibration.set_samples(*flags.samples);
  if (flags.length) calibration.set_length(*flags.length);
  if (flags.held_out) calibration.set_held_out(*flags.held_out);
  if (flags.seed) calibration.set_seed(*flags.seed);
  if (flags.calibration == "self") {
    calibration.mutable_self();
    return absl::OkStatus();
  }
  if (absl::StartsWith(flags.calibration, "file:")) {
    calibration.set_uri(flags.calibration);
    return absl::OkStatus();
  }
  auto text = ReadText(flags.calibration);
  if (!text.ok()) return text.status();
  if (absl::EndsWith(flags.calibration, ".jsonl")) {
    return AddJsonlTexts(*text, *calibration.mutable_texts());
  }
  calibration.mutable_texts()->add_texts(*std::move(text));
  return absl::OkStatus();
}

absl::StatusOr<v1::QuantizeRequest> ToRequest(const QuantizeFlags& flags) {
  v1::QuantizeRequest request;
  request.set_request_id(flags.request_id);
  request.set_source_uri(ToUri(flags.source));
  request.set_name(flags.name);
  request.set_overwrite(flags.overwrite);
  v1::Recipe& recipe = *request.mutable_recipe();
  recipe.set_preset(flags.recipe);
  if (!flags.recipe_json.empty()) {
    absl::StatusOr<std::string> text = ReadText(flags.recipe_json);
    if (!text.ok()) return text.status();
    recipe.set_json(*std::move(text));
  }
  if (flags.bits) recipe.set_bits(*flags.bits);
  if (flags.group_size) recipe.set_group_size(*flags.group_size);
  if (flags.embedding_bits) recipe.set_embedding_bits(*flags.embedding_bits);
  if (flags.damping) recipe.set_damping(*flags.damping);
  if (flags.target_bits) recipe.set_target_bits(*flags.target_bits);
  if (flags.target_bytes) recipe.set_target_bytes(*flags.target_bytes);
  if (flags.outliers) recipe.set_outliers(*flags.outliers);
  if (flags.symmetric) recipe.set_symmetric(true);
  if (absl::Status s = SetCalibration(flags, *request.mutable_calibration()); !s.ok()) return s;
  return request;
}

std::string ModelSummary(const v1::Model& model) {
  std::string text = absl::StrFormat("%s: %.3f bits/weight, %s", model.name(),
                                     model.bits_per_weight(), BytesText(model.packed_bytes()));
  if (!model.has_quality()) return text;
  const v1::QualityReport& q = model.quality();
  if (q.has_perplexity()) absl::StrAppendFormat(&text, ", perplexity %.3f", q.perplexity());
  if (q.has_reference_perplexity()) {
    absl::StrAppendFormat(&text, " (source %.3f)", q.reference_perplexity());
  }
  if (q.has_mean_kl()) absl::StrAppendFormat(&text, ", KL %.4f", q.mean_kl());
  if (q.has_top1_agreement()) {
    absl::StrAppendFormat(&text, ", same best token %.1f %%", 100 * q.top1_agreement());
  }
  return text;
}

std::string WarningsText(const Json& job) {
  std::string text;
  for (const Json& warning : job.value("warnings", Json::array()))
    absl::StrAppend(&text, "\n  warning: ", warning.get<std::string>());
  return text;
}

void PrintEnd(const Session& session, const Operation& operation) {
  const Json json = ToJson(operation);
  if (session.json) return PrintJson(json);
  const auto model = ResultOf<v1::Model>(operation);
  if (!model.ok()) return;
  PrintText(absl::StrCat(IdOf(operation), " done. ", ModelSummary(*model), WarningsText(json)));
}

// Evaluations have no stream of their own.
absl::Status Poll(const Session& session, const std::string& id, ProgressLine& progress) {
  while (true) {
    const auto operation = session.client.GetOperation(id);
    if (!operation.ok()) return operation.status();
    v1::EvaluateMetadata metadata;
    if (operation->metadata().UnpackTo(&metadata)) progress.Show(metadata);
    if (operation->done()) return absl::OkStatus();
    usleep(200'000);
  }
}

absl::Status Follow(const Session& session, const std::string& id) {
  ProgressLine progress;
  session.interrupts.Handle([&](int count) {
    if (count > 1) {
      std::fputc('\n', stderr);
      _exit(1);
    }
    progress.Say(absl::StrCat("The job goes on without this command. Watch it: babai jobs watch ",
                              id, "   Stop it: babai jobs cancel ", id, "   Ctrl-C again leaves."));
  });
  const bool evaluation = absl::StrContains(id, "eval-");
  const absl::Status status =
      evaluation ? Poll(session, id, progress)
                 : session.client.Watch(id, [&](const v1::WatchQuantizationResponse& message) {
                     progress.Show(message.metadata());
                   });
  session.interrupts.Handle(nullptr);
  return status;
}

int FollowToTheEnd(const Session& session, const std::string& id) {
  if (absl::Status s = Follow(session, id); !s.ok()) return Fail(s);
  const auto operation = session.client.GetOperation(id);
  if (!operation.ok()) return Fail(operation.status());
  PrintEnd(session, *operation);
  return operation->has_error() ? Fail(FromProto(operation->error())) : 0;
}

std::string JobLine(const Operation& operation) {
  const Json json = ToJson(operation);
  return absl::StrFormat("%-22s %-12s %4d%%  %-20s %s", IdOf(operation),
                         json.value("state", "UNKNOWN"),
                         static_cast<int>(100 * json.value("progress", 0.0)),
                         json.value("model", ""), json.value("recipe", json.value("type", "")));
}

std::string JobText(const Operation& operation) {
  const Json json = ToJson(operation);
  std::string text = JobLine(operation);
  for (const char* field : {"phase", "source_uri", "created", "finished", "worst_linear"}) {
    if (const std::string value = json.value(field, ""); !value.empty()) {
      absl::StrAppend(&text, "\n  ", field, ": ", value);
    }
  }
  if (json.contains("elapsed_seconds")) {
    absl::StrAppend(&text, "\n  elapsed: ", ClockText(json["elapsed_seconds"].get<double>()));
  }
  absl::StrAppend(&text, WarningsText(json));
  if (operation.has_error()) {
    absl::StrAppend(&text, "\n  error: ", ToText(FromProto(operation.error())));
  }
  return text;
}

}  // namespace

int RunQuantize(const Session& session, const QuantizeFlags& flags) {
  const auto request = ToRequest(flags);
  if (!request.ok()) return Fail(request.status());
  const auto operation = session.client.Quantize(*request);
  if (!operation.ok()) return Fail(operation.status());
  const std::string id = IdOf(*operation);
  if (flags.wait) return FollowToTheEnd(session, id);
  if (session.json) {
    PrintJson(ToJson(*operation));
  } else {
    PrintText(absl::StrCat(id, " queued. Watch it: babai jobs watch ", id));
  }
  return 0;
}

int RunJobsList(const Session& session) {
  const auto operations = session.client.ListOperations();
  if (!operations.ok()) return Fail(operations.status());
  if (session.json) {
    Json jobs = Json::array();
    for (const Operation& operation : *operations) jobs.push_back(ToJson(operation));
    PrintJson({{"jobs", jobs}});
    return 0;
  }
  for (const Operation& operation : *operations) PrintText(JobLine(operation));
  return 0;
}

int RunJobsShow(const Session& session, const std::string& id) {
  const auto operation = session.client.GetOperation(id);
  if (!operation.ok()) return Fail(operation.status());
  if (session.json) {
    PrintJson(ToJson(*operation));
  } else {
    PrintText(JobText(*operation));
  }
  return 0;
}

int RunJobsWatch(const Session& session, const std::string& id) {
  return FollowToTheEnd(session, id);
}

int RunJobsCancel(const Session& session, const std::string& id) {
  if (absl::Status s = session.client.CancelOperation(id); !s.ok()) return Fail(s);
  // The job stops at its next safe point, or had ended before: what is said is what is so.
  const auto operation = session.client.GetOperation(id);
  if (!operation.ok()) return Fail(operation.status());
  if (session.json) {
    PrintJson(ToJson(*operation));
  } else if (operation->done()) {
    PrintText(JobLine(*operation));
  } else {
    PrintText(absl::StrCat(id, " is stopping. Until it has: babai jobs watch ", id));
  }
  return 0;
}

int RunJobsDelete(const Session& session, const std::string& id) {
  if (absl::Status s = session.client.DeleteOperation(id); !s.ok()) return Fail(s);
  if (session.json) {
    PrintJson({{"id", id}, {"deleted", true}});
  } else {
    PrintText(absl::StrCat(id, " deleted"));
  }
  return 0;
}

}  // namespace babai::client

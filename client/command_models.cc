// models, tokenize and info.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/commands.h"
#include "client/json.h"
#include "client/output.h"

namespace babai::client {
namespace {

std::string ModelLine(const v1::Model& model) {
  return absl::StrFormat("%-24s %-9s %-8s %6.3f bits/weight %10s%s", model.name(),
                         StateName(model.state()), model.recipe().preset(), model.bits_per_weight(),
                         BytesText(model.packed_bytes()), model.pinned() ? "  pinned" : "");
}

// What a person tells presets apart by; --json has every field.
std::string RecipeSummary(const v1::Recipe& recipe) {
  if (recipe.solver() == v1::Recipe::SOLVER_DENSE) return "the weights as they are";
  const Json options = RecipeOptions(recipe);
  std::string text;
  for (const char* key : {"solver", "grid", "scale_fit", "order", "rotation", "target", "rescale",
                          "outlier_rule", "allocation"}) {
    const std::string value = options.value(key, "");
    if (value == "none" || value == "equal") continue;
    absl::StrAppend(&text, text.empty() ? "" : ", ", key, " ", value);
  }
  if (recipe.target_bits() > 0) absl::StrAppendFormat(&text, ", %g bits", recipe.target_bits());
  return text;
}

std::string QualityText(const v1::QualityReport& q) {
  std::string text = absl::StrCat("\n  held-out tokens  ", q.tokens());
  if (q.has_perplexity()) absl::StrAppendFormat(&text, "\n  perplexity       %.4f", q.perplexity());
  if (q.has_reference_perplexity()) {
    absl::StrAppendFormat(&text, " (source %.4f)", q.reference_perplexity());
  }
  if (q.has_mean_kl()) absl::StrAppendFormat(&text, "\n  mean KL          %.5f nats", q.mean_kl());
  if (q.has_top1_agreement()) {
    absl::StrAppendFormat(&text, "\n  same best token  %.2f %%", 100 * q.top1_agreement());
  }
  return text;
}

std::string LinearsText(const v1::Model& model) {
  std::vector<const v1::LinearReport*> worst;
  for (const auto& linear : model.linears()) worst.push_back(&linear);
  const size_t shown = std::min<size_t>(worst.size(), 5);
  std::partial_sort(
      worst.begin(), worst.begin() + static_cast<ptrdiff_t>(shown), worst.end(),
      [](const auto* a, const auto* b) { return a->relative_error() > b->relative_error(); });
  std::string text;
  for (size_t i = 0; i < shown; ++i) {
    absl::StrAppendFormat(&text, "\n  %-26s [%d, %d] %.3f bits, relative error %.4f",
                          worst[i]->name(), worst[i]->rows(), worst[i]->cols(),
                          worst[i]->bits_per_weight(), worst[i]->relative_error());
  }
  if (worst.size() > shown) {
    absl::StrAppendFormat(&text, "\n  ... and %d more linears (--json shows all)",
                          worst.size() - shown);
  }
  return text;
}

std::string ModelText(const v1::Model& model) {
  std::string text = ModelLine(model);
  absl::StrAppendFormat(&text, "\n  %s (%s), %d weights, context %d, vocabulary %d", model.family(),
                        model.architecture(), model.weights(), model.context_length(),
                        model.vocab_size());
  absl::StrAppend(&text, "\n  source           ", model.source_uri());
  if (model.linears_size() > 0) {
    absl::StrAppendFormat(&text,
                          "\n  linears          %.3f bits/weight, everything stored for them",
                          LinearBitsPerWeight(model));
  }
  if (model.has_error()) {
    absl::StrAppend(&text, "\n  error            ", ToText(FromProto(model.error())));
  }
  if (model.state() == v1::Model::STATE_LOADED) {
    absl::StrAppend(&text, "\n  in memory        ", BytesText(model.weight_bytes()), " weights, ",
                    BytesText(model.kv_bytes()), " KV cache; ", model.running(), " running, ",
                    model.waiting(), " waiting");
  }
  if (model.has_quality()) absl::StrAppend(&text, QualityText(model.quality()));
  for (const std::string& warning : model.warnings())
    absl::StrAppend(&text, "\n  warning: ", warning);
  if (!model.linears().empty()) absl::StrAppend(&text, "\n  worst linears:", LinearsText(model));
  return text;
}

absl::StatusOr<v1::Model> Change(Client& client, const std::string& verb, const std::string& name) {
  if (verb == "load") return client.LoadModel(name);
  if (verb == "unload") return client.UnloadModel(name);
  if (verb == "pin") return client.PinModel(name);
  return client.UnpinModel(name);
}

}  // namespace

int RunModelsList(const Session& session) {
  const auto models = session.client.ListModels();
  if (!models.ok()) return Fail(models.status());
  if (session.json) {
    Json list = Json::array();
    for (const v1::Model& model : *models) list.push_back(ToJson(model, /*full=*/false));
    PrintJson({{"models", list}});
    return 0;
  }
  for (const v1::Model& model : *models) PrintText(ModelLine(model));
  return 0;
}

int RunModelsShow(const Session& session, const std::string& name) {
  const auto model = session.client.GetModel(name);
  if (!model.ok()) return Fail(model.status());
  if (session.json) {
    PrintJson(ToJson(*model, /*full=*/true));
  } else {
    PrintText(ModelText(*model));
  }
  return 0;
}

int RunModelsChange(const Session& session, const std::string& verb, const std::string& name) {
  if (verb == "delete") {
    if (absl::Status s = session.client.DeleteModel(name); !s.ok()) return Fail(s);
    if (session.json) {
      PrintJson({{"name", name}, {"deleted", true}});
    } else {
      PrintText(absl::StrCat(name, " deleted"));
    }
    return 0;
  }
  const auto model = Change(session.client, verb, name);
  if (!model.ok()) return Fail(model.status());
  if (session.json) {
    PrintJson(ToJson(*model, /*full=*/false));
  } else {
    PrintText(ModelLine(*model));
  }
  return 0;
}

int RunTokenize(const Session& session, const TokenizeFlags& flags) {
  auto text = ReadText(flags.text);
  if (!text.ok()) return Fail(text.status());
  v1::TokenizeRequest request;
  request.set_model(flags.model);
  request.set_text(*std::move(text));
  request.set_add_special_tokens(!flags.no_special);
  request.set_parse_special_tokens(flags.parse_special);
  const auto ids = session.client.Tokenize(request);
  if (!ids.ok()) return Fail(ids.status());
  if (session.json) {
    PrintJson({{"token_ids", *ids}});
  } else {
    PrintText(absl::StrJoin(*ids, " "));
  }
  return 0;
}

int RunRecipesList(const Session& session) {
  const auto info = session.client.GetServerInfo();
  if (!info.ok()) return Fail(info.status());
  if (session.json) {
    PrintJson({{"recipes", ToJson(*info)["recipes"]}});
    return 0;
  }
  for (const v1::Recipe& recipe : info->recipes()) {
    PrintText(absl::StrFormat("%-12s %s", recipe.preset(), RecipeSummary(recipe)));
  }
  return 0;
}

int RunInfo(const Session& session) {
  const auto info = session.client.GetServerInfo();
  if (!info.ok()) return Fail(info.status());
  if (session.json) {
    PrintJson(ToJson(*info));
    return 0;
  }
  PrintText(absl::StrCat(
      "babai-server ", info->version(), " on ", info->device(), ", ", info->threads(),
      " threads, up ", ClockText(Seconds(info->uptime())), "\n  models   ", info->models(),
      "\n  recipes  ", absl::StrJoin(info->recipe_presets(), " "), "\n  sources  ",
      absl::StrJoin(info->source_schemes(), " "), info->draining() ? "\n  about to stop" : ""));
  return 0;
}

}  // namespace babai::client

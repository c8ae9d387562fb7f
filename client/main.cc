// babai: the command line of a babai server.
#include <functional>
#include <string>

#include "CLI/CLI.hpp"
#include "client/commands.h"
#include "client/output.h"

namespace babai::client {
namespace {

constexpr char kDescription[] =
    "Quantizes language models on a babai server and talks to them.\n\n"
    "  babai quantize model.gguf --name smol-w4 --bits 4 --wait   quantize to 4 bit, with "
    "progress\n"
    "  babai chat smol-w4 \"Why is the sky blue?\"                  ask it\n"
    "  babai evaluate smol-w4 --text wiki.txt --context 1024       judge it\n"
    "  babai jobs list                                             what the server is doing\n\n"
    "Exit code 0: done. 1: refused or failed; stderr names code, reason and field. 2: wrong usage.";

using Action = std::function<int(const Session&)>;

struct CommandLine {
  std::string server = "127.0.0.1:50051";
  bool json = false;
  Action action;

  QuantizeFlags quantize;
  GenerateFlags generate, chat;
  EvaluateFlags evaluate;
  TokenizeFlags tokenize;
  std::string job, model;
};

void AddQuantize(CLI::App& app, CommandLine& line) {
  QuantizeFlags& f = line.quantize;
  CLI::App* verb = app.add_subcommand("quantize", "Quantize a model (a job on the server)");
  verb->footer(
      "Examples:\n"
      "  babai quantize ./SmolLM2 --name smol-w4 --recipe babai --bits 4 --group_size 64 --wait\n"
      "  babai quantize file:///models/x.gguf --name x-w3 --bits 3 --calibration wiki.txt --wait\n"
      "  babai quantize ./SmolLM2 --name smol-best --recipe best --target_bits 3.125 --wait\n"
      "  babai quantize ./SmolLM2 --name smol --recipe dense --wait      import it unquantized");
  verb->add_option("uri", f.source,
                   "file:// URI, or a path of this host: a Hugging Face folder or a .gguf file "
                   "under one of the server's --model_roots")
      ->required();
  verb->add_option("--name", f.name, "name of the result: [a-z0-9][a-z0-9._-]*")->required();
  verb->add_option("--recipe", f.recipe,
                   "a preset (see: babai recipes list; default babai); dense imports unquantized");
  verb->add_option("--recipe_json", f.recipe_json,
                   "a local file with a recipe, as `babai --json recipes list` prints them")
      ->excludes("--recipe");
  verb->add_option("--bits", f.bits, "bits a code: 2, 3, 4 or 8 (default 4)");
  verb->add_option("--target_bits", f.target_bits,
                   "stored bits a weight over the linears, for presets that take a target");
  verb->add_option("--target_bytes", f.target_bytes, "bytes of the packed model, instead");
  verb->add_option("--outliers", f.outliers,
                   "ssqr, squeezellm: fraction of the weights kept apart");
  verb->add_option(
      "--group_size", f.group_size,
      "weights that share a scale: 32, 64, 128; -1 = a row; 0 = the largest that fits");
  verb->add_flag("--symmetric", f.symmetric, "codes around zero, no zero points");
  verb->add_option("--embedding_bits", f.embedding_bits, "bits of embedding and head: 4, 8 or 16");
  verb->add_option("--damping", f.damping, "fraction of the mean diagonal added to it (0.01)");
  verb->add_option(
          "--calibration", f.calibration,
          "self (text sampled from the model), a local text or .jsonl file sent inline, or "
          "a file:// URI of the server")
      ->capture_default_str();
  verb->add_option("--samples", f.samples, "calibration sequences (default 128)");
  verb->add_option("--length", f.length,
                   "tokens a sequence (default 512, or the model's context if smaller)");
  verb->add_option("--held_out", f.held_out, "further sequences for the evaluation");
  verb->add_option("--seed", f.seed, "of the self-calibration (default 1)");
  verb->add_option("--request_id", f.request_id, "makes a retry of this command safe");
  verb->add_flag("--overwrite", f.overwrite, "replace a model of the same name");
  verb->add_flag("--wait", f.wait, "show progress until the job is done");
  verb->callback([&] { line.action = [&](const Session& s) { return RunQuantize(s, f); }; });
}

void AddJobs(CLI::App& app, CommandLine& line) {
  CLI::App* jobs = app.add_subcommand("jobs", "List, show, watch, cancel and delete jobs");
  jobs->require_subcommand(1);
  jobs->add_subcommand("list", "every job and evaluation, newest first")->callback([&] {
    line.action = [](const Session& s) { return RunJobsList(s); };
  });
  const auto by_id = [&](const char* name, const char* help,
                         int (*run)(const Session&, const std::string&)) {
    CLI::App* verb = jobs->add_subcommand(name, help);
    verb->add_option("id", line.job, "job-... or eval-...")->required();
    verb->callback([&line, run] {
      line.action = [&line, run](const Session& s) { return run(s, line.job); };
    });
  };
  by_id("show", "state, progress, warnings, error", RunJobsShow);
  by_id("watch", "live progress until the end", RunJobsWatch);
  by_id("cancel", "stop it; what it wrote is removed", RunJobsCancel);
  by_id("delete", "forget a job that is done", RunJobsDelete);
}

void AddModels(CLI::App& app, CommandLine& line) {
  CLI::App* models = app.add_subcommand("models", "List, show, load, pin and delete models");
  models->require_subcommand(1);
  models->add_subcommand("list", "every model of the server")->callback([&] {
    line.action = [](const Session& s) { return RunModelsList(s); };
  });
  CLI::App* show = models->add_subcommand("show", "size, quality and certificate of a model");
  show->add_option("name", line.model, "the model")->required();
  show->callback(
      [&] { line.action = [&](const Session& s) { return RunModelsShow(s, line.model); }; });
  const std::pair<const char*, const char*> changes[] = {
      {"load", "load it into memory now"},
      {"unload", "free its memory; it stays on disk"},
      {"pin", "load it and never unload it to make room"},
      {"unpin", "allow unloading again"},
      {"delete", "remove it from the disk"}};
  for (const auto& [name, help] : changes) {
    CLI::App* verb = models->add_subcommand(name, help);
    verb->add_option("name", line.model, "the model")->required();
    verb->callback([&line, name = std::string(name)] {
      line.action = [&line, name](const Session& s) {
        return RunModelsChange(s, name, line.model);
      };
    });
  }
}

void AddSampling(CLI::App* verb, GenerateFlags& f) {
  verb->add_option("--max_tokens", f.max_tokens, "tokens to generate (default: what still fits)");
  verb->add_option("--temperature", f.temperature, "0 = always the likeliest token (default 1)");
  verb->add_option("--top_k", f.top_k, "keep the k likeliest tokens, 0 = all");
  verb->add_option("--top_p", f.top_p, "keep the smallest set with this probability, (0, 1]");
  verb->add_option("--min_p", f.min_p, "drop tokens below min_p times the best, [0, 1]");
  verb->add_option("--presence_penalty", f.presence_penalty, "[-2, 2], default 0");
  verb->add_option("--frequency_penalty", f.frequency_penalty, "[-2, 2], default 0");
  verb->add_option("--repetition_penalty", f.repetition_penalty, "(0, 10], default 1");
  verb->add_option("--seed", f.seed, "the same seed gives the same text");
  verb->add_option("--stop", f.stop, "stop at this text; may be given up to 16 times")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  verb->add_flag("--include_stop", f.include_stop, "keep the stop text");
  verb->add_flag("--ignore_eos", f.ignore_eos, "go on after the model's end of text");
  verb->add_flag("--logprobs", f.logprobs, "with --json: log-probability of every token");
  verb->add_flag("--keep_special", f.keep_special, "show control tokens in the text");
  verb->add_flag("--no_stream", f.no_stream, "print the answer at once, at its end");
}

void AddGenerate(CLI::App& app, CommandLine& line) {
  GenerateFlags& f = line.generate;
  CLI::App* verb = app.add_subcommand("generate", "Continue a text");
  verb->footer(
      "Examples:\n"
      "  babai generate smol-w4 \"Once upon a time\" --max_tokens 64 --temperature 0.7 --seed 1\n"
      "  babai --json generate smol-w4 --ids 504,5829,282 --max_tokens 8 --temperature 0\n"
      "  cat essay.txt | babai generate smol-w4 - --max_tokens 200");
  verb->add_option("model", f.model, "name of a model")->required();
  auto* prompt = verb->add_option("prompt", f.prompt, "the text, as it is; - reads stdin");
  verb->add_option("--ids", f.ids, "token ids instead of a text: 1,2,3 or a file of them")
      ->excludes(prompt);
  verb->add_flag("--parse_special", f.parse_special, "text that spells a control token becomes it");
  AddSampling(verb, f);
  verb->callback([&] {
    if (f.prompt.empty() && f.ids.empty()) throw CLI::RequiredError("prompt or --ids");
    line.action = [&](const Session& s) { return RunGenerate(s, f); };
  });
}

void AddChat(CLI::App& app, CommandLine& line) {
  GenerateFlags& f = line.chat;
  CLI::App* verb = app.add_subcommand("chat", "Ask once, or talk on the terminal");
  verb->footer(
      "Examples:\n"
      "  babai chat smol-w4 \"Name three rivers.\" --temperature 0 --max_tokens 60\n"
      "  babai chat smol-w4 --system \"Answer in French.\"      /reset forgets, /quit leaves");
  verb->add_option("model", f.model, "name of a model with a chat template")->required();
  verb->add_option("message", f.prompt, "one message; none = a conversation; - reads stdin");
  verb->add_option("--system", f.system, "system message");
  AddSampling(verb, f);
  verb->callback([&] { line.action = [&](const Session& s) { return RunChat(s, f); }; });
}

void AddEvaluate(CLI::App& app, CommandLine& line) {
  EvaluateFlags& f = line.evaluate;
  CLI::App* verb = app.add_subcommand("evaluate", "Perplexity of a text; KL to another model");
  verb->footer(
      "Example:\n"
      "  babai evaluate smol-w4 --text wiki.test.raw --context 1024 --reference smol "
      "--max_windows 20");
  verb->add_option("model", f.model, "name of a model")->required();
  auto* text = verb->add_option("--text", f.text, "a local text file; - reads stdin");
  verb->add_option("--ids", f.ids, "token ids instead of a text: 1,2,3 or a file of them")
      ->excludes(text);
  verb->add_option("--context", f.context, "window length in tokens (default 1024)");
  verb->add_option("--max_windows", f.max_windows, "windows from the start; 0 = all (default)");
  verb->add_option("--reference", f.reference, "model to compare with, of the same vocabulary");
  verb->add_flag("--served_numerics", f.served_numerics,
                 "through the kernels that serve, not fp32 activations");
  verb->callback([&] {
    if (f.text.empty() && f.ids.empty()) throw CLI::RequiredError("--text or --ids");
    line.action = [&](const Session& s) { return RunEvaluate(s, f); };
  });
}

void AddTokenize(CLI::App& app, CommandLine& line) {
  TokenizeFlags& f = line.tokenize;
  CLI::App* verb = app.add_subcommand("tokenize", "Token ids of a text");
  verb->add_option("model", f.model, "name of a model")->required();
  verb->add_option("--text", f.text, "a local text file; - reads stdin")->required();
  verb->add_flag("--no_special", f.no_special, "without the model's BOS/EOS around it");
  verb->add_flag("--parse_special", f.parse_special, "text that spells a control token becomes it");
  verb->callback([&] { line.action = [&](const Session& s) { return RunTokenize(s, f); }; });
}

void AddVerbs(CLI::App& app, CommandLine& line) {
  app.add_option("--server", line.server, "address of the server, host:port")
      ->envname("BABAI_SERVER")
      ->capture_default_str();
  app.add_flag("--json", line.json, "print one JSON object on stdout");
  app.fallthrough();  // both may come behind the verb too
  app.require_subcommand(1);
  AddQuantize(app, line);
  AddJobs(app, line);
  AddModels(app, line);
  AddGenerate(app, line);
  AddChat(app, line);
  AddEvaluate(app, line);
  AddTokenize(app, line);
  CLI::App* recipes = app.add_subcommand("recipes", "Presets for quantize --recipe");
  recipes->require_subcommand(1);
  recipes->add_subcommand("list", "every preset; with --json every field of each")->callback([&] {
    line.action = [](const Session& s) { return RunRecipesList(s); };
  });
  app.add_subcommand("info", "Version, device and limits of the server")->callback([&] {
    line.action = [](const Session& s) { return RunInfo(s); };
  });
}

int Main(int argc, char** argv) {
  CLI::App app(kDescription, "babai");
  CommandLine line;
  AddVerbs(app, line);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  Interrupts interrupts;
  Client client(line.server);
  return line.action({client, interrupts, line.json});
}

}  // namespace
}  // namespace babai::client

int main(int argc, char** argv) { return babai::client::Main(argc, argv); }

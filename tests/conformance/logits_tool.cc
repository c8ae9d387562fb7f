// What a checkpoint or packed model says about given token ids, for comparison with other programs:
//
//   logits_tool logits MODEL IDS OUT               fp32 [ids, vocab], all ids as one sequence
//   logits_tool perplexity MODEL IDS CONTEXT WINDOWS [REFERENCE]
//   logits_tool encode MODEL TEXT IDS              without special tokens
//
// MODEL is a folder or .gguf file; IDS are int32, OUT fp32, both raw little-endian.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "server/engine/evaluate.h"
#include "server/engine/runner.h"
#include "server/model/checkpoint.h"
#include "server/store/packed_model.h"
#include "server/text/tokenizer.h"

namespace babai {
namespace {

template <typename T>
T OrExit(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "%s\n", value.status().ToString().c_str());
  std::exit(1);
}

std::vector<char> ReadBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<int32_t> ReadIds(const std::string& path) {
  const std::vector<char> bytes = ReadBytes(path);
  const auto* ids = reinterpret_cast<const int32_t*>(bytes.data());
  return {ids, ids + bytes.size() / sizeof(int32_t)};
}

void WriteBytes(const std::string& path, const void* data, size_t bytes) {
  std::ofstream(path, std::ios::binary).write(static_cast<const char*>(data), bytes);
}

bool IsPacked(const std::string& path) {
  return std::filesystem::exists(std::filesystem::path(path) / "manifest.json");
}

std::unique_ptr<Runner> OpenRunner(const std::string& path, int64_t context, ThreadPool& pool) {
  if (IsPacked(path)) {
    auto model = OrExit(PackedModel::Open(path));
    const RunnerOptions options =
        EvaluationRunnerOptions(model->config(), context, Numerics::kReference);
    return OrExit(MakeCpuRunner(model, options, pool));
  }
  const auto checkpoint = OrExit(OpenCheckpoint(path));
  const RunnerOptions options =
      EvaluationRunnerOptions(checkpoint->config(), context, Numerics::kReference);
  return OrExit(MakeCpuRunner(*checkpoint, options, pool));
}

int Logits(const std::string& model, const std::string& ids_path, const std::string& out) {
  ThreadPool pool(0);
  const std::vector<int32_t> ids = ReadIds(ids_path);
  const int32_t count = ids.size();
  const std::unique_ptr<Runner> runner = OpenRunner(model, count, pool);
  const int64_t vocab = runner->config().vocab, chunk = runner->options().max_step_tokens;
  std::vector<int32_t> iota(count);
  for (int32_t i = 0; i < count; ++i) iota[i] = i;
  std::vector<float> logits(count * vocab);
  for (int64_t begin = 0; begin < count; begin += chunk) {
    const int64_t n = std::min<int64_t>(chunk, count - begin);
    const int32_t borders[] = {0, static_cast<int32_t>(n)};
    const int32_t context[] = {static_cast<int32_t>(begin + n)};
    StepBatch batch;
    batch.tokens = absl::MakeConstSpan(ids).subspan(begin, n);
    batch.positions = absl::MakeConstSpan(iota).subspan(begin, n);
    batch.sequence_begin = borders;
    batch.context_length = context;
    batch.block_tables = iota;
    batch.max_blocks = count;
    batch.logits_rows = absl::MakeConstSpan(iota).subspan(0, n);
    const absl::Status status = runner->Step(batch, logits.data() + begin * vocab);
    if (!status.ok()) return OrExit(absl::StatusOr<int>(status));
  }
  WriteBytes(out, logits.data(), logits.size() * sizeof(float));
  return 0;
}

int Perplexity(const std::vector<std::string>& arguments) {
  ThreadPool pool(0);
  EvaluateRequest request;
  request.tokens = ReadIds(arguments[1]);
  request.context = std::stoll(arguments[2]);
  request.max_windows = std::stoll(arguments[3]);
  const std::unique_ptr<Runner> runner = OpenRunner(arguments[0], request.context, pool);
  std::unique_ptr<Runner> reference;
  if (arguments.size() > 4) reference = OpenRunner(arguments[4], request.context, pool);
  const absl::Time start = absl::Now();
  const EvaluateResult r =
      OrExit(EvaluateRunners(*runner, reference.get(), request, pool, nullptr, nullptr));
  std::printf("perplexity %.6f over %lld predictions of %lld windows in %.1f s\n", r.perplexity,
              static_cast<long long>(r.tokens), static_cast<long long>(r.windows),
              absl::ToDoubleSeconds(absl::Now() - start));
  if (!r.has_reference) return 0;
  std::printf("reference %.6f, KL mean %.6f 99 %% %.4f 99.9 %% %.4f max %.4f, top-1 %.4f\n",
              r.reference_perplexity, r.mean_kl, r.kl_p99, r.kl_p999, r.kl_max, r.top1_agreement);
  return 0;
}

int Encode(const std::string& model, const std::string& text_path, const std::string& out) {
  const auto tokenizer = IsPacked(model)
                             ? OrExit(LoadTokenizer(model))
                             : OrExit(MakeTokenizer(OrExit(OpenCheckpoint(model))->tokenizer()));
  const std::vector<char> text = ReadBytes(text_path);
  const std::vector<int32_t> ids =
      OrExit(tokenizer->Encode({text.data(), text.size()}, false, false));
  WriteBytes(out, ids.data(), ids.size() * sizeof(int32_t));
  return 0;
}

int Main(const std::vector<std::string>& arguments) {
  const std::string verb = arguments.empty() ? "" : arguments[0];
  const std::vector<std::string> rest(arguments.begin() + !arguments.empty(), arguments.end());
  if (verb == "logits" && rest.size() == 3) return Logits(rest[0], rest[1], rest[2]);
  if (verb == "perplexity" && (rest.size() == 4 || rest.size() == 5)) return Perplexity(rest);
  if (verb == "encode" && rest.size() == 3) return Encode(rest[0], rest[1], rest[2]);
  std::fprintf(stderr,
               "usage: logits_tool logits MODEL IDS OUT | perplexity MODEL IDS CONTEXT WINDOWS "
               "[REFERENCE] | encode MODEL TEXT IDS\n");
  return 2;
}

}  // namespace
}  // namespace babai

int main(int argc, char** argv) { return babai::Main({argv + 1, argv + argc}); }
